//! A library's allocator: what the library has not freed when it is closed, the host can free.
//!
//! Statics are never dropped, so every library leaves the memory that they own. Each allocation here has a header, which links
//! all that is in use into a chain. The host takes over the chain before it closes the library, and frees it afterwards.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// The header before each allocation.
#[repr(C)]
#[derive(Debug)]
pub struct Header {
    previous: *mut Header,
    next: *mut Header,
    /// The start of the allocation that the system returned.
    base: *mut u8,
    size: usize,
}

/// The memory of one library. [`crate::export!`] makes one the library's allocator.
#[derive(Debug)]
pub struct Arena {
    taken: AtomicBool,
    /// The first header in use. Once the host has taken over, the host keeps it, at `elsewhere`.
    first: UnsafeCell<*mut Header>,
    elsewhere: UnsafeCell<*mut *mut Header>,
}

// SAFETY: `first` and `elsewhere`, and the headers behind them, are only touched while `taken` is held.
unsafe impl Sync for Arena {}

/// Holds the arena's lock.
struct Turn<'a>(&'a Arena);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
    }
}

/// The space that a header takes before memory of this alignment.
const fn before(align: usize) -> usize {
    let header = size_of::<Header>();
    header.div_ceil(align) * align
}

/// The layout of an allocation with its header, and the space before the memory.
fn whole(layout: Layout) -> Option<(Layout, usize)> {
    let align = layout.align().max(align_of::<Header>());
    let before = before(align);
    let size = layout.size().checked_add(before)?;
    Some((Layout::from_size_align(size, align).ok()?, before))
}

impl Arena {
    /// An arena with nothing in it.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it is for statics")]
    pub const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            first: UnsafeCell::new(ptr::null_mut()),
            elsewhere: UnsafeCell::new(ptr::null_mut()),
        }
    }

    /// Takes the lock. It is held for a few instructions only, none of which may block or use the allocator.
    fn turn(&self) -> Turn<'_> {
        let mut tries = 0u32;
        while self.taken.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            tries += 1;
            if tries.is_multiple_of(64) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        Turn(self)
    }

    /// Where the address of the first header is kept.
    fn place(&self, _: &Turn<'_>) -> *mut *mut Header {
        // SAFETY: the lock is held.
        let elsewhere = unsafe { *self.elsewhere.get() };
        if elsewhere.is_null() { self.first.get() } else { elsewhere }
    }

    /// Keeps the head of the chain at `place`, in the host's memory, from now on.
    ///
    /// # Safety
    /// `place` must be writable for as long as the library can allocate or free anything: until it is closed.
    pub unsafe fn hand_over(&self, place: *mut *mut Header) {
        let turn = self.turn();
        // SAFETY: the lock is held; the caller promises that `place` can be written to.
        unsafe {
            *place = *self.place(&turn);
            *self.elsewhere.get() = place;
        }
    }

    /// # Safety
    /// `header` must be room for a header that nobody else uses.
    unsafe fn link(&self, header: *mut Header, base: *mut u8, size: usize) {
        let turn = self.turn();
        let place = self.place(&turn);
        // SAFETY: the lock is held, `place` is valid, the first header (if any) is of a piece in use, and `header` is
        // the caller's to write.
        unsafe {
            let next = *place;
            header.write(Header { previous: ptr::null_mut(), next, base, size });
            if !next.is_null() {
                (*next).previous = header;
            }
            *place = header;
        }
    }

    /// # Safety
    /// `header` must have been linked.
    unsafe fn unlink(&self, header: *mut Header) -> (*mut u8, usize) {
        let turn = self.turn();
        // SAFETY: the lock is held; `header` is linked, so that its neighbours are headers of pieces in use.
        unsafe {
            let Header { previous, next, base, size } = header.read();
            if previous.is_null() {
                *self.place(&turn) = next;
            } else {
                (*previous).next = next;
            }
            if !next.is_null() {
                (*next).previous = previous;
            }
            (base, size)
        }
    }
}

// SAFETY: every piece is the system's, larger by a header's room rounded up to the alignment, so that what is answered is
// as large and as aligned as was asked for, and nobody else's until it is freed. Nothing here unwinds.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((whole, before)) = whole(layout) else { return ptr::null_mut() };
        // SAFETY: its size is not zero: a header is in it.
        let base = unsafe { System.alloc(whole) };
        if base.is_null() {
            return base;
        }
        // SAFETY: the piece has `before` bytes for the header, which stands at their end, aligned for it as `before`
        // is a multiple of its alignment and `base` is aligned to no less.
        unsafe {
            let memory = base.add(before);
            self.link(memory.cast::<Header>().sub(1), base, layout.size());
            memory
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        let Some((whole, _)) = whole(layout) else { return };
        // SAFETY: the caller promises that it came from `alloc` with this layout: its header is before it.
        unsafe {
            let (base, _) = self.unlink(memory.cast::<Header>().sub(1));
            System.dealloc(base, whole);
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let new = Layout::from_size_align(size, layout.align()).ok().and_then(whole);
        let (Some((old, before)), Some((new, _))) = (whole(layout), new) else { return ptr::null_mut() };
        // SAFETY: as for `dealloc`; the system moves header and content together, and the header is linked again, where
        // it is now. If there is no memory, the old piece stays, and is linked again.
        unsafe {
            let (base, held) = self.unlink(memory.cast::<Header>().sub(1));
            let moved = System.realloc(base, old, new.size());
            let (base, size, answer) =
                if moved.is_null() { (base, held, moved) } else { (moved, size, moved.add(before)) };
            self.link(base.add(before).cast::<Header>().sub(1), base, size);
            answer
        }
    }
}

/// Frees all allocations of a chain. Returns how many bytes that was.
///
/// # Safety
/// The chain must be that of a library that is closed; nothing of its memory may be used any more.
pub unsafe fn free(mut first: *mut Header) -> usize {
    let mut bytes = 0;
    while !first.is_null() {
        // SAFETY: every header of the chain stands in a piece that is in use; the piece came from the system's
        // `malloc` or `posix_memalign`, which `System` is on Unix, and its `free` takes both.
        unsafe {
            let Header { next, base, size, .. } = first.read();
            bytes += size;
            libc::free(base.cast());
            first = next;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(arena: &Arena) -> usize {
        let turn = arena.turn();
        // SAFETY: the lock is held, and every header of the chain is of a piece in use.
        unsafe {
            let mut header = *arena.place(&turn);
            let mut count = 0;
            while !header.is_null() {
                count += 1;
                header = (*header).next;
            }
            count
        }
    }

    #[test]
    fn allocations_are_aligned_and_leftovers_freed_by_the_host() {
        let arena = Arena::new();
        let mut pieces = Vec::new();
        for (size, align) in [(0, 1), (1, 1), (24, 8), (100, 16), (4096, 4096), (7, 64), (1 << 20, 32)] {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: the layout is valid; what is written is within the piece.
            let memory = unsafe { arena.alloc(layout) };
            assert_eq!(memory as usize % align, 0, "{size} {align}");
            // SAFETY: as above.
            unsafe { memory.write_bytes(0xa5, size) };
            pieces.push((memory, layout));
        }
        assert_eq!(count(&arena), 7);
        let (memory, layout) = pieces.remove(3);
        // SAFETY: the piece is of this arena and layout, and is used by its new address alone from here on.
        let grown = unsafe { arena.realloc(memory, layout, 5000) };
        // SAFETY: the first hundred bytes were written before it grew.
        let kept = unsafe { std::slice::from_raw_parts(grown, 100) };
        assert!(kept.iter().all(|byte| *byte == 0xa5));
        let (memory, layout) = pieces.remove(0);
        // SAFETY: as above; it is not used again.
        unsafe { arena.dealloc(memory, layout) };
        assert_eq!(count(&arena), 6);
        let mut place = ptr::null_mut();
        // SAFETY: the place outlives the arena's use.
        unsafe { arena.hand_over(&raw mut place) };
        let (memory, layout) = pieces.remove(0);
        // SAFETY: as above.
        unsafe { arena.dealloc(memory, layout) };
        assert_eq!(count(&arena), 5);
        // SAFETY: nothing of the arena is used any more.
        let freed = unsafe { free(place) };
        assert_eq!(freed, 24 + 5000 + 4096 + 7 + (1 << 20));
    }
}
