//! How the system's allocator keeps memory that was freed.

/// Allocations of up to this many bytes use memory that was freed before: twice the longest string that Twisted reads.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const FROM_FREED: libc::c_int = 2 << 20;
/// How many freed bytes each of the allocator's arenas keeps at its end. There is at most one arena for each thread. Freed
/// memory below something that is in use is kept anyway.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: libc::c_int = 8 << 20;

/// Makes the allocator keep some freed memory, for the rest of the process. A program calls it once, at its start. By default,
/// glibc returns the buffers of each call of 600 kB to the system, and page faults on the next ones take longer than the call's
/// own work (`cargo bench -p credhost --bench hostile -- fairness Echo`: "one call").
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` takes two numbers, and sets two of the allocator's own under the allocator's lock; it touches no memory of ours,
    // and may be called at any time, by any thread. An allocator that does not know the numbers answers with 0, and is as it was.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, FROM_FREED);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}
