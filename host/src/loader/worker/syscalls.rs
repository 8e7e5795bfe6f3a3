//! Which system calls a worker may make: seccomp.
//!
//! In a sandbox, only those that services need: any other fails for lack of permission (EPERM). In a plain process, all except
//! those that start processes, unless the operator allows these.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Is, SeccompCondition as Condition,
    SeccompFilter, SeccompRule,
};

use super::confinement::{Confinement, Isolation, LACKS, Permission};

/// Allowed with any arguments.
const PLAIN: &[libc::c_long] = &[
    // On what is open already.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_fstatfs,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_copy_file_range,
    libc::SYS_getdents64,
    // Files by name: landlock decides which. It does not cover their modes, owners and times, nor watching them: nobody may.
    libc::SYS_openat,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_renameat,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_truncate,
    libc::SYS_statfs,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_umask,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // Threads of its own.
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_gettid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Signals, as far as they are its own.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Who and where it is.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpgid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getrusage,
    libc::SYS_getpriority,
    libc::SYS_times,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    // Time.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    // Waiting for what is open.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_signalfd4,
    // Sockets that it was given, or may make.
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_shutdown,
];

/// Older forms of the same, which one family of processors has.
#[cfg(target_arch = "x86_64")]
const OLD: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_create,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_time,
    libc::SYS_eventfd,
    libc::SYS_getpgrp,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[libc::c_long] = &[];

/// Calls that start processes.
#[cfg(target_arch = "x86_64")]
const STARTS: &[libc::c_long] = &[libc::SYS_fork, libc::SYS_vfork, libc::SYS_execve, libc::SYS_execveat];
#[cfg(not(target_arch = "x86_64"))]
const STARTS: &[libc::c_long] = &[libc::SYS_execve, libc::SYS_execveat];

/// What `prctl` may be asked for: names of threads and of memory, and what applies to the process.
const PRCTL: [u64; 6] = [
    libc::PR_SET_NAME as u64,
    libc::PR_GET_NAME as u64,
    libc::PR_SET_VMA as u64,
    libc::PR_GET_DUMPABLE as u64,
    libc::PR_CAPBSET_READ as u64,
    libc::PR_GET_NO_NEW_PRIVS as u64,
];

/// What `ioctl` may be asked for: how many bytes there are, whether to wait, and what sort of terminal it is.
const IOCTL: [u64; 6] = [libc::FIONBIO, libc::FIONREAD, libc::FIOCLEX, libc::FIONCLEX, libc::TCGETS, libc::TIOCGWINSZ];

/// What `fcntl` may be asked for: descriptors, locks, and the seals of memory files; not leases, signals, or folder
/// notifications.
const FCNTL: [libc::c_int; 13] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_GETLK,
    libc::F_SETLK,
    libc::F_SETLKW,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    libc::F_OFD_SETLKW,
    libc::F_GET_SEALS,
    libc::F_GETPIPE_SZ,
];

/// Flags that make a namespace, or a child of another process: `clone` must not be asked for these.
const CLONES_NOT: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_PARENT
    | libc::CLONE_PTRACE;

/// The other numbers that one family of processors has for the same calls.
const X32: libc::c_long = 0x4000_0000;

/// The kind of a socket, without flags.
const SOCKET_KIND: u64 = 0xf;

type Rules = BTreeMap<libc::c_long, Vec<SeccompRule>>;

/// Restricts the process to the allowed calls from now on.
///
/// # Errors
/// If the system does not do it; the error is one sentence.
pub(super) fn restrict(confinement: &Confinement) -> Result<(), String> {
    let may_start = confinement.allow.contains(&Permission::Processes);
    if confinement.isolation == Isolation::Process && may_start {
        return Ok(());
    }
    let failed = |error: &dyn std::fmt::Display| format!("{LACKS}: seccomp ({error})");
    let mut filters = Vec::new();
    let eperm = || SeccompAction::Errno(libc::EPERM.cast_unsigned());
    if !may_start || confinement.isolation == Isolation::Sandbox {
        // Its arguments are in memory, where no filter can look: callers that want a thread use the older call instead. This
        // filter is the first, because the other one lets no filter be added.
        let rules = Rules::from([(libc::SYS_clone3, Vec::new())]);
        filters.push((rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS.cast_unsigned())));
    }
    if confinement.isolation == Isolation::Sandbox {
        // Programs that copy a file set its mode, and would fail: the call only reports success.
        let rules = Rules::from([(libc::SYS_fchmod, Vec::new())]);
        filters.push((rules, SeccompAction::Allow, SeccompAction::Errno(0)));
        let rules = allowed(&confinement.allow, may_start).map_err(|error| failed(&error))?;
        filters.push((rules, eperm(), SeccompAction::Allow));
    } else {
        let rules = starting().map_err(|error| failed(&error))?;
        filters.push((rules, SeccompAction::Allow, eperm()));
    }
    for (rules, otherwise, then) in filters {
        let arch = std::env::consts::ARCH.try_into().map_err(|error| failed(&error))?;
        let filter = SeccompFilter::new(rules, otherwise, then, arch).map_err(|error| failed(&error))?;
        let program: BpfProgram = filter.try_into().map_err(|error: seccompiler::BackendError| failed(&error))?;
        seccompiler::apply_filter(&program).map_err(|error| failed(&error))?;
    }
    Ok(())
}

type Refused = seccompiler::BackendError;

fn rule(conditions: &[(u8, Length, Is, u64)]) -> Result<SeccompRule, Refused> {
    let conditions =
        conditions.iter().map(|(at, length, is, value)| Condition::new(*at, length.clone(), is.clone(), *value));
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// The calls that a sandbox allows.
fn allowed(allow: &[Permission], may_start: bool) -> Result<Rules, Refused> {
    let mut rules: Rules = PLAIN.iter().chain(OLD).map(|call| (*call, Vec::new())).collect();
    let one_of = |at: u8, values: &[u64]| -> Result<Vec<SeccompRule>, Refused> {
        values.iter().map(|value| rule(&[(at, Length::Dword, Is::Eq, *value)])).collect()
    };
    // Another filter decides on it.
    rules.insert(libc::SYS_fchmod, Vec::new());
    rules.insert(libc::SYS_prctl, one_of(0, &PRCTL)?);
    rules.insert(libc::SYS_ioctl, one_of(1, &IOCTL)?);
    let mut control = one_of(1, &FCNTL.map(|word| word.cast_unsigned().into()))?;
    let asynchronous = libc::O_ASYNC.cast_unsigned().into();
    control.push(rule(&[
        (1, Length::Dword, Is::Eq, libc::F_SETFL.cast_unsigned().into()),
        (2, Length::Dword, Is::MaskedEq(asynchronous), 0),
    ])?);
    rules.insert(libc::SYS_fcntl, control);
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_kill, one_of(0, &[own])?);
    rules.insert(libc::SYS_tgkill, one_of(0, &[own])?);
    // Its own limits, and those that are lower.
    rules.insert(libc::SYS_prlimit64, one_of(0, &[0, own])?);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_getrlimit, Vec::new());
    // Both ends are its own, and stay so. Only streams: another kind of socket could send to any path.
    let pair = rule(&[
        (0, Length::Dword, Is::Eq, libc::AF_UNIX.cast_unsigned().into()),
        (1, Length::Dword, Is::MaskedEq(SOCKET_KIND), libc::SOCK_STREAM.cast_unsigned().into()),
    ])?;
    rules.insert(libc::SYS_socketpair, vec![pair]);
    // Sending must not begin a connection: landlock checks only `connect`.
    let fast = libc::MSG_FASTOPEN.cast_unsigned().into();
    for (call, at) in [(libc::SYS_sendto, 3), (libc::SYS_sendmsg, 2), (libc::SYS_sendmmsg, 3)] {
        rules.insert(call, vec![rule(&[(at, Length::Dword, Is::MaskedEq(fast), 0)])?]);
    }
    let mut sockets = Vec::new();
    let connects = allow.iter().any(|allowed| matches!(allowed, Permission::Connect(_)));
    let kinds = [
        (connects, libc::SOCK_STREAM, libc::IPPROTO_TCP),
        (allow.contains(&Permission::Datagrams), libc::SOCK_DGRAM, libc::IPPROTO_UDP),
    ];
    for (_, kind, protocol) in kinds.into_iter().filter(|(may, ..)| *may) {
        for (family, protocol) in
            [(libc::AF_INET, 0), (libc::AF_INET, protocol), (libc::AF_INET6, 0), (libc::AF_INET6, protocol)]
        {
            sockets.push(rule(&[
                (0, Length::Dword, Is::Eq, family.cast_unsigned().into()),
                (1, Length::Dword, Is::MaskedEq(SOCKET_KIND), kind.cast_unsigned().into()),
                // Neither what is raw by another name, nor what is built on top.
                (2, Length::Dword, Is::Eq, protocol.cast_unsigned().into()),
            ])?);
        }
    }
    if !sockets.is_empty() {
        rules.insert(libc::SYS_socket, sockets);
        rules.insert(libc::SYS_connect, Vec::new());
        rules.insert(libc::SYS_bind, Vec::new());
    }
    // Another filter decides on it, if no processes may be started.
    rules.insert(libc::SYS_clone3, Vec::new());
    if may_start {
        rules.extend(STARTS.iter().map(|call| (*call, Vec::new())));
        let not = CLONES_NOT.cast_unsigned().into();
        rules.insert(libc::SYS_clone, vec![rule(&[(0, Length::Qword, Is::MaskedEq(not), 0)])?]);
    } else {
        let thread = libc::CLONE_THREAD as u64;
        rules.insert(libc::SYS_clone, vec![rule(&[(0, Length::Dword, Is::MaskedEq(thread), thread)])?]);
    }
    Ok(rules)
}

/// Calls that start a process, and no thread.
fn starting() -> Result<Rules, Refused> {
    let mut rules: Rules = STARTS.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_clone, vec![rule(&[(0, Length::Dword, Is::MaskedEq(libc::CLONE_THREAD as u64), 0)])?]);
    if cfg!(target_arch = "x86_64") {
        let others: Vec<_> = rules.iter().map(|(call, of)| (*call | X32, of.clone())).collect();
        rules.extend(others);
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_calls_that_let_a_service_out_are_not_allowed() {
        let never = [
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_pidfd_open,
            libc::SYS_pidfd_getfd,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_chroot,
            libc::SYS_setuid,
            libc::SYS_capset,
            libc::SYS_personality,
            libc::SYS_open_by_handle_at,
            libc::SYS_fchmodat,
            libc::SYS_fchown,
            libc::SYS_utimensat,
            libc::SYS_setxattr,
            libc::SYS_inotify_init1,
            libc::SYS_socket,
            libc::SYS_execve,
        ];
        let rules = allowed(&[], false).expect("the rules can be made");
        for call in never {
            assert!(!rules.contains_key(&call), "{call}");
        }
        // With everything granted, the calls that do not concern sockets and processes are still not allowed.
        let all = ["net:tcp:1", "net:udp", "processes"].map(|word| word.parse().expect("it is one"));
        let rules = allowed(&all, true).expect("the rules can be made");
        for call in never.iter().filter(|call| ![libc::SYS_socket, libc::SYS_execve].contains(call)) {
            assert!(!rules.contains_key(call), "{call}");
        }
    }
}
