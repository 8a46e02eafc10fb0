//! System calls of Vellum: the only crate with unsafe code.
//!
//! What rustix has a safe call for is called directly everywhere; here is what it lacks, and what several crates need in the
//! same way. Each kernel object is one type that lets go of it when dropped; each kernel structure has its size and offsets
//! asserted at compile time; each unsafe block says why it is sound.
//!
//! | module | what |
//! |---|---|
//! | [`mount`] | mounts by fsopen and open_tree, their attributes, their unique ids |
//! | [`mountinfo`] | which mounts there are, by statmount and /proc/self/mountinfo |
//! | [`loopdev`] | loop devices |
//! | [`ns`] | the user and mount namespace of an unprivileged user's store |
//! | [`detach`] | background workers that outlive the command |
//! | [`lock`] | flock |
//! | [`mod@file`] | files that appear whole or not at all, folders that only their owner enters |
//! | [`fsinfo`] | what a file system is and can do |
//! | [`mod@btrfs`] | subvolumes of btrfs, and its trees |
//! | [`ioctl`] | freezing a file system |
//! | [`project`] | project quotas: numbers on directories, and what they may take |
//! | [`verity`] | files that the kernel verifies when it reads them |
//! | [`space`] | growing a file system, and telling its device what it does not use |
//! | [`process`] | who uses a mount |
//! | [`child`] | what a child process cost |
//! | [`fault`] | named points where tests make things fail |
//! | [`random`], [`boot`] | random bytes, this boot's id |

// Each unsafe block is documented (a lint of the workspace sees to it), and there is no other crate that has any.
#![allow(unsafe_code)]

pub mod boot;
pub mod btrfs;
pub mod child;
pub mod detach;
pub mod fault;
pub mod file;
pub mod fsinfo;
pub mod ioctl;
pub mod lock;
pub mod loopdev;
pub mod mount;
pub mod mountinfo;
pub mod ns;
pub mod process;
pub mod project;
pub mod random;
pub mod space;
pub mod verity;

/// Says that a test could not run here, and why.
#[cfg(test)]
pub(crate) fn skip(name: &str, reason: &dyn std::fmt::Display) {
    #[expect(clippy::print_stdout, reason = "the test runner counts these lines")]
    {
        println!("SKIP {name}: {reason}");
    }
}
