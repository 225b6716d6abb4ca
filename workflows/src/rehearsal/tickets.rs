//! Where a node that boots from the network finds what it is to install.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use crate::ports::BootTicket;

/// Begins the line of a boot configuration that says by whose order it was written.
const TICKET_LINE: &str = "# turnaround: ";

/// Asked at the very moment of a netboot.
pub trait TicketSource: Send + Sync + fmt::Debug {
    fn staged(&self, node: &str, mac: &str) -> Option<BootTicket>;
}

/// Tickets that came through the [`NetBoot`](crate::ports::NetBoot) port of the simulated site itself.
#[derive(Debug, Default)]
pub(super) struct TicketsInMemory(pub(super) BTreeMap<String, BootTicket>);

/// What stands in that line. A withdrawn order stays in its file, and nothing boots by it.
#[derive(Deserialize)]
struct Order {
    staged: bool,
    ticket: Option<BootTicket>,
}

/// The PXE server's folder of boot configurations, `<mac>.cfg`, as the real adapter writes it.
#[derive(Debug, Clone)]
pub struct TicketDirectory(pub PathBuf);

impl TicketSource for TicketDirectory {
    fn staged(&self, _node: &str, mac: &str) -> Option<BootTicket> {
        let text = std::fs::read_to_string(self.0.join(format!("{mac}.cfg"))).ok()?;
        let order = text.lines().find_map(|line| line.strip_prefix(TICKET_LINE))?;
        let order: Order = serde_json::from_str(order.trim()).ok()?;
        order.ticket.filter(|_| order.staged)
    }
}
