//! What drivers share that stand on overlayfs (kernel: `Documentation/filesystems/overlayfs.rst`): what this kernel and file system can do, found out by
//! doing it ([`Features`]), what the entries of an upper mean ([`UpperGuide`], [`mark`]), and how much may be in one ([`Limits`]).
//!
//! It owns one file of a driver's home, `.features`, and makes mounts only for probing. They have no place, or on older kernels one for a moment, in a folder that the next probe finds
//! should this one be killed ([`Scratch`]).

mod features;
mod guide;
mod limit;
mod scratch;

pub use features::{Features, probe_below};
pub use guide::{UpperGuide, is_whiteout_file, mark};
pub use limit::{Lifted, Limits};
pub use scratch::{Placed, Scratch};
