//! Making the pool larger, and giving back to the host what it does not use.

use super::create::lengthen;
use super::{Facts, PoolStatus, device, image, lock, missing, mountpoint};
use crate::faults::point;
use crate::{Code, Error, Result, Store};
use std::fs::File;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;
use vellum_sys::fsinfo::FileSystem;

/// How often it is looked at while something is written.
const EVERY: Duration = Duration::from_millis(50);
/// How often it is trimmed in a row at most, while each gives something back.
const TRIMS: u32 = 20;
/// Less is not worth a growth.
const LEAST_STEP: u64 = 64 << 20;
const MOST_STEP: u64 = 64 << 30;

/// What decides on growth, in bytes.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Of the pool's file.
    size: u64,
    /// In the pool.
    free: u64,
    /// Of the file, on the host.
    allocated: u64,
    host_free: u64,
    host_floor: u64,
    preallocated: bool,
}

impl Sizes {
    /// Whether so little is free that it is time. The free room must last until the next look.
    fn is_filling(&self) -> bool {
        self.free < (self.size / 8).clamp(128 << 20, 8 << 30)
    }

    /// How large it is to become: twice as large, or a quarter larger where that takes the room at once; never so large that, when it is full, the host
    /// is below its floor. `None`: that is not to be had.
    fn next(&self) -> Option<u64> {
        let step = if self.preallocated { self.size / 4 } else { self.size }.clamp(LEAST_STEP, MOST_STEP);
        let spare = self.host_free.saturating_sub(self.host_floor);
        let most = match self.preallocated {
            true => self.size + spare,
            false => self.allocated.saturating_add(spare),
        };
        let step = step.min(most.saturating_sub(self.size)) & !((1 << 20) - 1);
        (step >= LEAST_STEP).then_some(self.size + step)
    }
}

impl Store {
    /// Makes the pool larger: to `size` bytes, or by a step.
    ///
    /// # Errors
    /// [`Code::NotFound`]: there is no pool; [`Code::Invalid`]: it is that large already; [`Code::Full`]: the host has not the room.
    pub fn pool_grow(&self, size: Option<u64>) -> Result<PoolStatus> {
        let facts = self.pool_facts("make the pool larger")?;
        self.grow_to(&facts, |sizes| match size {
            Some(size) if size <= sizes.size => Err(Error::new(
                Code::Invalid,
                "make the pool larger",
                format!("it has {} MiB already, and is never made smaller", sizes.size >> 20),
            )
            .with_hint("`vellum pool trim` gives the host back what is not used")),
            Some(size) => Ok(Some(size)),
            None => sizes.next().map(Some).ok_or_else(|| {
                Error::new(
                    Code::Full,
                    "make the pool larger",
                    format!(
                        "the host has {} MiB free, and keeps {} MiB in reserve",
                        sizes.host_free >> 20,
                        sizes.host_floor >> 20
                    ),
                )
                .object(image(&self.layout).display())
                .with_hint("make room on the host's disk")
            }),
        })?;
        super::status::of(&self.layout, &self.floor)
    }

    /// Gives back to the host what the pool does not use, and says how many bytes that were. Of a preallocated pool nothing.
    ///
    /// # Errors
    /// [`Code::NotFound`]: there is no pool; the kernel's.
    pub fn pool_trim(&self) -> Result<u64> {
        let facts = self.pool_facts("trim the pool")?;
        if facts.preallocated {
            return Ok(0);
        }
        let place = mountpoint(&self.layout);
        let root = crate::layout::open_folder(&place)?;
        let (_, before) = device::allocated(&self.layout)?;
        let mut now = before;
        // What was deleted a moment ago is freed by the file system in the background, a part after the other.
        for _ in 0..TRIMS {
            crate::files::barrier(&root, &place)?;
            point("store.pool.trimmed")?;
            vellum_sys::space::trim(&root).map_err(|e| Error::io("trim the pool at", &place, e))?;
            std::thread::sleep(EVERY);
            let last = std::mem::replace(&mut now, device::allocated(&self.layout)?.1);
            if now == last {
                break;
            }
        }
        Ok(before.saturating_sub(now))
    }

    /// Looks whether the pool fills, and makes it larger if so; `true` if that was done. For servers, once a second; operations do it themselves. Without
    /// a pool nothing is done.
    ///
    /// # Errors
    /// The kernel's. That the host has no more room is none.
    pub fn pool_tend(&self) -> Result<bool> {
        let Some(facts) = Facts::of(&self.layout)?.filter(|_| self.read_only.is_none()) else {
            return Ok(false);
        };
        if !self.pool_sizes(&facts)?.is_filling() {
            return Ok(false);
        }
        self.grow_to(&facts, |sizes| Ok(if sizes.is_filling() { sizes.next() } else { None }))
    }

    /// Whether there is a pool with room in it that the host can give, after it was made larger if need be.
    pub(crate) fn pool_has_room(&self) -> bool {
        let Ok(Some(facts)) = Facts::of(&self.layout) else { return false };
        let _ = self.pool_tend();
        self.pool_sizes(&facts).is_ok_and(|sizes| {
            let host = sizes.preallocated || sizes.host_free > sizes.host_floor.saturating_add(LEAST_STEP);
            host && !sizes.is_filling()
        })
    }

    fn pool_facts(&self, operation: &str) -> Result<Facts> {
        Facts::of(&self.layout)?.ok_or_else(|| missing(&self.layout, operation))
    }

    fn pool_sizes(&self, facts: &Facts) -> Result<Sizes> {
        let at = |path: &std::path::Path| {
            FileSystem::at(path).map_err(|e| Error::io("look at the file system of", path, e))
        };
        let (pool, host) = (at(self.layout.data())?, at(self.layout.root())?);
        let (size, allocated) = device::allocated(&self.layout)?;
        Ok(Sizes {
            size,
            free: pool.free_bytes,
            allocated,
            host_free: host.free_bytes,
            host_floor: self.floor.of(&host),
            preallocated: facts.preallocated,
        })
    }

    /// Steps 1 to 4 of a growth; `decide` gives the new size when nobody else grows it.
    fn grow_to(&self, facts: &Facts, decide: impl FnOnce(&Sizes) -> Result<Option<u64>>) -> Result<bool> {
        let _lock = lock(&self.layout)?;
        let Some(size) = decide(&self.pool_sizes(facts)?)? else { return Ok(false) };
        let path = image(&self.layout);
        let failed = |e: std::io::Error| Error::io("make the pool's file larger,", &path, e);
        let file = File::options().write(true).open(&path).map_err(failed)?;
        lengthen(&file, size, facts.preallocated).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        point("store.pool.lengthened")?;
        let device = device::attached(&self.layout).ok_or_else(|| {
            Error::new(Code::System, "make the pool larger", "its file has no loop device")
                .object(path.display())
        })?;
        device.follow_size().map_err(|e| Error::io("make larger", device.path(), e))?;
        point("store.pool.widened")?;
        let place = mountpoint(&self.layout);
        let root = crate::layout::open_folder(&place)?;
        vellum_sys::space::grow_to_device(&root, size)
            .map_err(|e| Error::io("make the file system larger at", &place, e))?;
        point("store.pool.grown")?;
        Ok(true)
    }

    /// What is written in the pool and not in its file yet: bytes that the host will have fewer.
    fn owed(&self) -> Result<u64> {
        let pool = self.layout.data();
        let fs = FileSystem::at(pool).map_err(|e| Error::io("look at the file system of", pool, e))?;
        let used = fs.total_bytes.saturating_sub(fs.free_bytes);
        Ok(used.saturating_sub(device::allocated(&self.layout)?.1))
    }

    /// Does work that writes much, and meanwhile makes a pool larger when it fills. `low` is told, once, when the host falls below its floor, or
    /// will when what was written has reached it.
    pub(crate) fn watched<T>(&self, low: &(dyn Fn(Error) + Sync), work: impl FnOnce() -> T) -> T {
        if !self.layout.has_pool() {
            return work();
        }
        let (done, end) = std::sync::mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let before = self.owed().unwrap_or(0);
                let mut told = false;
                while end.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                    // What cannot be looked at or made larger is told by the write that fails.
                    let _ = self.pool_tend();
                    let owed = self.owed().unwrap_or(0).saturating_sub(before);
                    if !told && let Err(e) = self.check_host_floor(owed, "go on") {
                        told = true;
                        low(e);
                    }
                }
            });
            let out = work();
            drop(done);
            out
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn sizes() -> Sizes {
        Sizes {
            size: 20 * GIB,
            free: GIB,
            allocated: 19 * GIB,
            host_free: 100 * GIB,
            host_floor: 2 * GIB,
            preallocated: false,
        }
    }

    #[test]
    fn plain_a_pool_grows_when_it_fills_and_only_into_what_the_host_can_give() {
        assert!(sizes().is_filling());
        assert!(!Sizes { free: 3 * GIB, ..sizes() }.is_filling());
        assert_eq!(sizes().next(), Some(40 * GIB));
        assert_eq!(Sizes { preallocated: true, ..sizes() }.next(), Some(25 * GIB));
        // The host gives what it has above its floor, counted with what the file has already.
        assert_eq!(Sizes { host_free: 5 * GIB, ..sizes() }.next(), Some(22 * GIB));
        assert_eq!(Sizes { host_free: 5 * GIB, preallocated: true, ..sizes() }.next(), Some(23 * GIB));
        // It promises more than there is already.
        assert_eq!(Sizes { allocated: 3 * GIB, host_free: 5 * GIB, ..sizes() }.next(), None);
        assert_eq!(Sizes { host_free: GIB, ..sizes() }.next(), None);
        assert_eq!(
            Sizes { size: 300 * GIB, allocated: 300 * GIB, host_free: 900 * GIB, ..sizes() }.next(),
            Some(364 * GIB)
        );
    }
}
