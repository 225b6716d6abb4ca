//! A real machine to renew: QEMU without hardware help, real UEFI firmware, real GRUB, real Linux, behind a BMC.
//!
//! What is real: firmware, PXE, GRUB and the very files that Turnaround writes for it, kernels, installation, disk, SSH, `ipmitool`
//! and, for IPMI, `ipmi_sim` with its session, keys and password. What stands in: the BMC's hand on the power switch
//! ([`machine`]); the Redfish service, ours, as Debian has none; the boot flags of `ipmi_sim`, which it drops ([`bmc`]); the cloud, in
//! which the node's nova-compute goes on reporting whatever the machine does.

pub mod bed;
pub mod bmc;
pub mod images;
pub mod machine;
