//! Tells the system what a worker must not do, before its library is opened and before it has a second thread.
//!
//! Landlock restricts files. Seccomp allows only the system calls that services need. Both restrict the network, and so does a
//! namespace of its own, if the system allows one. Resource limits restrict memory and the number of files. The rights of root
//! are dropped. If the kernel lacks something, that is an error: a sandbox that is asked for is complete, or there is none.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::confinement::{Confinement, FILE, Isolation, LACKS, MEMORY, Permission};
use super::syscalls;

/// How much a process maps besides memory of its own, in bytes: code, and stacks that are hardly used.
const BESIDE: u64 = 1 << 30;

/// What every program reads: code, and what the system reports of the machine and of the process.
const READABLE: [&str; 17] = [
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/timezone",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu",
    "/sys/fs/cgroup",
    "/dev/urandom",
    "/dev/random",
    "/dev/zero",
    "/sys/kernel/mm/transparent_hugepage",
];
/// What every program writes.
const WRITABLE: [&str; 1] = ["/dev/null"];
/// What host names are resolved with.
const NAMES: [&str; 5] = ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/services", "/etc/gai.conf"];

/// Confines this process, which must have only one thread yet. `copy` is the library that it will open, `folder` its own.
///
/// # Errors
/// If the system does not do it; the error is one sentence. Then the process must not continue.
pub fn confine(confinement: &Confinement, copy: &Path, folder: &Path) -> Result<(), String> {
    if confinement.isolation == Isolation::None {
        return Ok(());
    }
    limits(confinement)?;
    if confinement.isolation == Isolation::Sandbox {
        let wants_network =
            confinement.allow.iter().any(|allowed| matches!(allowed, Permission::Connect(_) | Permission::Datagrams));
        if !wants_network && !has_no_network() {
            tracing::debug!("no namespace of its own: the network is closed by seccomp alone");
        }
        drop_rights().map_err(|error| format!("the sandbox cannot drop the rights of root: {error}"))?;
        files(&confinement.allow, copy, folder)?;
    }
    syscalls::restrict(confinement)
}

/// Sets resource limits.
fn limits(confinement: &Confinement) -> Result<(), String> {
    let limit = |resource, most, what: &str| {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        setrlimit(resource, limit).map_err(|error| {
            let may =
                getrlimit(resource).maximum.map_or_else(String::new, |may| format!("; the host itself may have {may}"));
            format!("its {what} cannot be limited to {most}: {error}{may}")
        })
    };
    // Crashes write no core files.
    limit(Resource::Core, 0, "core file")?;
    let memory = confinement.memory.unwrap_or(MEMORY);
    limit(Resource::Data, memory, "memory (most.memory)")?;
    if let Some(files) = confinement.files {
        limit(Resource::Nofile, files, "descriptors (most.files)")?;
    }
    if confinement.isolation == Isolation::Sandbox {
        // Only here shared memory counts, and with it the code of the host and of the library.
        limit(Resource::As, memory.saturating_add(BESIDE), "memory (most.memory)")?;
        limit(Resource::Fsize, confinement.file.unwrap_or(FILE), "files (most.file)")?;
    }
    Ok(())
}

/// Whether the process has got a namespace without a network. If the system allows none, it can still make no sockets
/// (`syscalls`).
fn has_no_network() -> bool {
    use rustix::thread::UnshareFlags;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    // SAFETY: the process has one thread, and what it has open stays as it is.
    if unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.is_ok() {
        return true;
    }
    // SAFETY: as above.
    if unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) }.is_err() {
        return false;
    }
    // It keeps its user and group. If that cannot be set, its files are nobody's, and it fails where it opens them.
    let maps = [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ];
    maps.into_iter().all(|(file, line)| std::fs::write(format!("/proc/self/{file}"), line).is_ok())
}

/// Drops the rights of root, which a host that runs as root has.
fn drop_rights() -> rustix::io::Result<()> {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
    set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
}

/// Restricts what it may do to files, and where it may connect.
fn files(allow: &[Permission], copy: &Path, folder: &Path) -> Result<(), String> {
    let lacks = |what: &str, error: &dyn std::fmt::Display| format!("{LACKS}: {what} ({error})");
    let ports: Vec<u16> = allow
        .iter()
        .filter_map(|allowed| if let Permission::Connect(port) = allowed { Some(*port) } else { None })
        .collect();
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V3))
        .map_err(|error| lacks("landlock for files, of Linux 6.2", &error))?;
    if allow.iter().any(|allowed| matches!(allowed, Permission::Connect(_) | Permission::Datagrams)) {
        // A socket that it was given could be connected again.
        rules = rules
            .handle_access(AccessNet::from_all(ABI::V4))
            .map_err(|error| lacks("landlock for connections (net:tcp), of Linux 6.7", &error))?;
    }
    // What newer kernels can restrict as well; on older ones seccomp does.
    let rules = rules
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(ABI::V4)))
        .and_then(|rules| rules.scope(Scope::from_all(ABI::V6)))
        .and_then(Ruleset::create)
        .map_err(|error| lacks("landlock", &error))?;
    let mut rules = Rules(rules);
    for path in READABLE {
        rules.add(Path::new(path), AccessFs::from_read(ABI::V5), Absent::Passes)?;
    }
    for path in WRITABLE {
        rules.add(Path::new(path), AccessFs::from_all(ABI::V5), Absent::Passes)?;
    }
    rules.add(copy, AccessFs::from_read(ABI::V5), Absent::Is)?;
    rules.add(folder, AccessFs::from_all(ABI::V5), Absent::Is)?;
    for allowed in allow {
        match allowed {
            Permission::Read(path) => rules.add(path, AccessFs::from_read(ABI::V5), Absent::Is)?,
            Permission::Write(path) => rules.add(path, AccessFs::from_all(ABI::V5), Absent::Is)?,
            Permission::Connect(_) | Permission::Datagrams => {
                for path in NAMES {
                    rules.add(Path::new(path), AccessFs::from_read(ABI::V5), Absent::Passes)?;
                }
            }
            Permission::Processes => {}
        }
    }
    let mut rules = rules.0;
    for port in ports {
        rules = rules
            .add_rule(NetPort::new(port, AccessNet::ConnectTcp))
            .map_err(|error| lacks("landlock for connections (net:tcp), of Linux 6.7", &error))?;
    }
    let status = rules.restrict_self().map_err(|error| lacks("landlock", &error))?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(lacks("landlock", &"it is not enforced"));
    }
    Ok(())
}

/// Whether a path must exist.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    Passes,
    Is,
}

struct Rules(RulesetCreated);

impl Rules {
    fn add(&mut self, path: &Path, access: landlock::BitFlags<AccessFs>, absent: Absent) -> Result<(), String> {
        let wrong = |error: &dyn std::fmt::Display| format!("its allow has {}: {error}", path.display());
        let (opened, is_file) = match (PathFd::new(path), std::fs::metadata(path)) {
            (Ok(opened), Ok(found)) => (opened, !found.is_dir()),
            _ if absent == Absent::Passes => return Ok(()),
            (Err(error), _) => return Err(wrong(&error)),
            (_, Err(error)) => return Err(wrong(&error)),
        };
        // Rights that apply only to folders are not granted on a file.
        let access = if is_file { access & AccessFs::from_file(ABI::V5) } else { access };
        // The rules go through the library by value.
        (&mut self.0).add_rule(PathBeneath::new(opened, access)).map(drop).map_err(|error| wrong(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_confinement_confines_nothing() {
        let none = Confinement::default();
        assert_eq!(confine(&none, Path::new("/nowhere.so"), Path::new("/nowhere")), Ok(()));
        assert!(std::fs::read("/etc/passwd").is_ok());
    }
}
