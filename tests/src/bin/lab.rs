//! `cargo lab`: renews a whole simulated site with the real programs, and says truly how it went.
//!
//! Exit code 0: every node was renewed and the site's own log shows nothing that must not happen. 1: not so. 2: it could not be
//! run.
#![allow(clippy::unwrap_used)]

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use turnaround_daemon::wire::{WorkflowView, WorkflowsView};
use turnaround_tests::harness::{Client, programs};
use turnaround_tests::lab::{Chaos, ChaosReport, Processes, Programs, Progress, View};
use turnaround_tests::site::{Settings, Site};
use turnaround_workflows::clock::SystemClock;
use turnaround_workflows::rehearsal::{InstancePlan, SetupPlan, SitePlan, VmState, World};

/// How often the view is brought up to date.
const VIEW_EVERY: Duration = Duration::from_millis(200);
/// Time runs so much faster at the simulated site than at a real one.
const SPED_UP: u32 = 90;
/// The setup script takes less than the half hour of a real one: one runs at a time, and all nodes wait for it.
const SETUP_TAKES: Duration = Duration::from_secs(60);
/// The instances that are nodes of the Kubernetes cluster.
const CLUSTER: [&str; 3] = ["k3s-1", "k3s-2", "k3s-3"];
/// A lab that takes longer than this is stuck. Undisturbed it takes half a minute.
const GIVE_UP_AFTER: Duration = Duration::from_secs(300);

/// Renews all nodes of a simulated site with the real daemon and workers.
#[derive(Parser)]
#[command(name = "lab")]
struct Arguments {
    /// Kill workers, the daemon and Redis on the way.
    #[arg(long)]
    chaos: bool,
    /// What the site and the chaos are made from. The same seed makes the same site and the same blows.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(2..=200))]
    nodes: u16,
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(0..=2000))]
    instances: u16,
    /// Nodes that may be out of service at once.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=100))]
    out: u16,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=16))]
    workers: u16,
    /// Plain lines instead of the live view.
    #[arg(long)]
    plain: bool,
    /// Keep the lab's folder, with all logs, and say where it is.
    #[arg(long)]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Most instances are live, some are stopped or paused, as at any site.
fn plan(arguments: &Arguments) -> SitePlan {
    let mut plan = SitePlan::uniform(usize::from(arguments.nodes), 0);
    for n in 0..arguments.instances {
        let node = format!("gpu-{:02}", n % arguments.nodes + 1);
        let state = match n % 8 {
            3 => VmState::Stopped,
            6 => VmState::Paused,
            _ => VmState::Active,
        };
        plan.instances.push(InstancePlan::new(&format!("vm-{n:03}")).on(&node).state(state));
    }
    // A management cluster on the first nodes, which is drained on the way.
    for (node, name) in plan.nodes.iter().zip(CLUSTER) {
        plan.instances.push(InstancePlan::new(name).on(&node.name));
    }
    let there = plan.nodes.len().min(CLUSTER.len());
    plan = plan.with_cluster(&CLUSTER[..there]);
    // Ironic renews every fourth.
    let ironics: Vec<String> = plan.nodes.iter().skip(3).step_by(4).map(|node| node.name.clone()).collect();
    plan = plan.with_ironic(&ironics.iter().map(String::as_str).collect::<Vec<_>>());
    plan.setup = Some(SetupPlan { takes: SETUP_TAKES, ..SetupPlan::default() });
    plan.sped_up(SPED_UP)
}

async fn run(arguments: &Arguments) -> io::Result<bool> {
    // Where they are not built yet that takes minutes, and cargo is told to be quiet.
    eprintln!("building daemon, worker and command, unless they are built");
    let programs = programs().await?;
    let plan = plan(arguments);
    let names: Vec<String> = plan.nodes.iter().map(|node| node.name.clone()).collect();
    let image = plan.images[0].name.clone();
    let world = World::new(Arc::new(SystemClock), plan, arguments.seed);
    let before = world.snapshot();
    let site = Site::start(&world).await?;
    let mut settings = Settings::quick(&programs.site_ssh);
    settings.max_out = arguments.out;
    "2s".clone_into(&mut settings.lease);
    let redis = Processes::redis_socket(site.folder());
    settings.store = format!("url = \"unix://{}\"\nreply_timeout = \"1s\"", redis.display());
    let config = site.write_config(&world, &settings)?;
    let mut processes = Processes::new(programs.clone(), site.folder(), &config, usize::from(arguments.workers));
    processes.start_redis().await?;
    processes.start_daemon()?;
    for worker in 0..processes.workers() {
        processes.start_worker(worker)?;
    }
    let client = Client::new(&site.socket())?;
    client.until_up().await?;
    let mut view = View::new(&names, arguments.plain);
    view.tell(&format!(
        "{} nodes, {} instances, at most {} nodes out at once; {} workers, seed {}",
        arguments.nodes, arguments.instances, arguments.out, arguments.workers, arguments.seed
    ));
    let rollout = order(&programs, &site, &names, &image).await?;
    view.tell(&format!("ordered {rollout}"));
    let lab = Lab { client, rollout: &rollout, world: &world };
    let (ended, chaos) = lab.watch(&mut processes, &mut view, arguments).await?;
    view.finish();
    let elapsed = view.elapsed();
    processes.end().await?;
    let verdict = Verdict::reach(ended.as_ref(), &world, &before, &names, &site, u32::from(arguments.out));
    let good = verdict.tell(elapsed, chaos.as_ref());
    if arguments.keep || !good {
        eprintln!("the logs are in {}", site.keep().display());
    }
    Ok(good)
}

/// Orders the rollout by the command that an operator types.
async fn order(programs: &Programs, site: &Site, nodes: &[String], image: &str) -> io::Result<String> {
    let output = tokio::process::Command::new(&programs.cli)
        .arg("--socket")
        .arg(site.socket())
        .args(["--json", "node", "renew"])
        .args(nodes)
        .args(["--image", image, "--yes"])
        .output()
        .await?;
    if !output.status.success() {
        return Err(io::Error::other(format!("the rollout was refused: {}", String::from_utf8_lossy(&output.stderr))));
    }
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    answer["id"].as_str().map(str::to_owned).ok_or_else(|| io::Error::other(format!("no id in the answer: {answer}")))
}

struct Lab<'a> {
    client: Client,
    rollout: &'a str,
    world: &'a World,
}

impl Lab<'_> {
    /// Until the rollout has ended. None if it is stuck.
    async fn watch(
        &self,
        processes: &mut Processes,
        view: &mut View,
        arguments: &Arguments,
    ) -> io::Result<(Option<WorkflowView>, Option<ChaosReport>)> {
        let mut chaos = arguments.chaos.then(|| Chaos::new(arguments.seed));
        let mut next_blow = tokio::time::Instant::now() + chaos.as_mut().map_or(GIVE_UP_AFTER, Chaos::pause);
        while view.elapsed() < GIVE_UP_AFTER {
            if let Some(chaos) = &mut chaos
                && tokio::time::Instant::now() >= next_blow
            {
                let what = chaos.strike(processes).await?;
                view.tell(&format!("-- {what}"));
                next_blow = tokio::time::Instant::now() + chaos.pause();
            }
            processes.check()?;
            // While the daemon is down there is nothing to show, and that is no error.
            if let Ok(rollout) = self.client.get::<WorkflowView>(&format!("/v1/workflows/{}", self.rollout)).await {
                let open = self.client.get::<WorkflowsView>("/v1/workflows?scope=open&limit=500").await;
                view.update(&progress(&rollout, open.ok()), &self.world.snapshot());
                if rollout.line.status.is_ended() || rollout.line.status == turnaround_workflows::store::Status::NeedsOperator {
                    return Ok((Some(rollout), chaos.map(|chaos| chaos.report())));
                }
            }
            tokio::time::sleep(VIEW_EVERY).await;
        }
        Ok((None, chaos.map(|chaos| chaos.report())))
    }
}

fn progress(rollout: &WorkflowView, open: Option<WorkflowsView>) -> Progress {
    let mut progress = Progress::default();
    for child in &rollout.children {
        if let Some(outcome) = child.outcome {
            progress.nodes.insert(child.key.clone(), outcome.as_str().to_owned());
            progress.done += 1;
        }
    }
    for line in open.map(|open| open.workflows).unwrap_or_default() {
        let what = if line.headline.is_empty() { line.status.as_str() } else { &line.headline };
        let why = match &line.why_not_now {
            Some(why) if !why.text.is_empty() && !what.contains(&why.text) => format!(" ({})", why.text),
            Some(_) | None => String::new(),
        };
        progress.nodes.insert(line.target.clone(), format!("{what}{why}"));
    }
    progress
}

/// What the site itself says of the end.
struct Verdict {
    renewed: usize,
    of: usize,
    complaints: Vec<String>,
}

impl Verdict {
    fn reach(
        ended: Option<&WorkflowView>,
        world: &World,
        before: &turnaround_workflows::rehearsal::SiteSnapshot,
        names: &[String],
        site: &Site,
        out_max: u32,
    ) -> Verdict {
        let after = world.snapshot();
        let mut complaints = Vec::new();
        match ended {
            None => complaints.push("the rollout did not end in time".to_owned()),
            Some(view) if view.line.status != turnaround_workflows::store::Status::Succeeded => {
                complaints.push(format!("the rollout is {}: {}", view.line.status.as_str(), view.line.headline));
            }
            Some(_) => {}
        }
        let renewed = names.iter().filter(|name| after.node(name).is_some_and(|node| node.installed.is_some() && node.enabled && node.up));
        let renewed = renewed.count();
        for instance in &before.instances {
            match after.instance(&instance.name) {
                None => complaints.push(format!("instance {} is lost", instance.name)),
                Some(now) if now.vm_state != instance.vm_state => {
                    complaints.push(format!("instance {} was {} and is {}", instance.name, instance.vm_state, now.vm_state));
                }
                Some(_) => {}
            }
        }
        match std::fs::read_to_string(&site.log) {
            Ok(log) => complaints.extend(turnaround_proof::checker::check(&log, out_max)),
            Err(error) => complaints.push(format!("the site's log can't be read: {error}")),
        }
        Verdict { renewed, of: names.len(), complaints }
    }

    fn tell(&self, elapsed: Duration, chaos: Option<&ChaosReport>) -> bool {
        println!("{} of {} nodes renewed in {:.1} s", self.renewed, self.of, elapsed.as_secs_f64());
        if let Some(chaos) = chaos {
            println!("{chaos}");
        }
        if self.complaints.is_empty() {
            println!("the site's own log: no move, reset or image twice; never too many nodes out; no image on a node with instances");
        }
        for complaint in &self.complaints {
            println!("VIOLATION: {complaint}");
        }
        self.complaints.is_empty() && self.renewed == self.of
    }
}
