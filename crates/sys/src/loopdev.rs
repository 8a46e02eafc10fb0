//! Loop devices: a file as a block device.
//!
//! Every device made here is *autoclear*: the kernel takes it away when its last user (a descriptor, a mount) lets go. So a process
//! that is killed between attaching and mounting leaves nothing, and unmounting is all there is to undo.

use rustix::ioctl::{Getter, Ioctl, IoctlOutput, NoArg, Opcode, Setter, ioctl};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const LOOP_CLR_FD: Opcode = 0x4C01;
const LOOP_GET_STATUS64: Opcode = 0x4C05;
const LOOP_SET_CAPACITY: Opcode = 0x4C07;
const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64` of the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

const _: () = assert!(size_of::<LoopInfo>() == 232);
const _: () = assert!(std::mem::offset_of!(LoopInfo, flags) == 52);
const _: () = assert!(std::mem::offset_of!(LoopInfo, file_name) == 56);

/// `struct loop_config` of the kernel.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);
const _: () = assert!(std::mem::offset_of!(LoopConfig, info) == 8);

const EMPTY: LoopInfo = LoopInfo {
    device: 0,
    inode: 0,
    rdevice: 0,
    offset: 0,
    size_limit: 0,
    number: 0,
    encrypt_type: 0,
    encrypt_key_size: 0,
    flags: 0,
    file_name: [0; 64],
    crypt_name: [0; 64],
    encrypt_key: [0; 32],
    init: [0; 2],
};

/// A loop device, kept while this lives; afterwards as long as something is mounted from it.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    fd: File,
}

impl LoopDevice {
    /// Attaches `file` to a free device: direct I/O where the file system has it, so that nothing is cached twice.
    ///
    /// # Errors
    /// No /dev/loop-control, no permission, or the file cannot be opened. With the error comes what was attempted in [`io::Error`]'s
    /// own text where the number alone would not say it.
    pub fn attach(file: &Path, read_only: bool) -> io::Result<Self> {
        let backing = File::options().read(true).write(!read_only).open(file)?;
        let control = File::options().read(true).write(true).open("/dev/loop-control")?;
        let mut left = 64;
        loop {
            // SAFETY: the request takes no argument; the number is that of LOOP_CTL_GET_FREE.
            let number = unsafe { ioctl(&control, GetFree) }?;
            match Self::configure(number, &backing, read_only) {
                // Somebody else took this number between the two calls.
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && left > 0 => left -= 1,
                result => return result,
            }
        }
    }

    fn configure(number: u32, backing: &File, read_only: bool) -> io::Result<Self> {
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let fd = File::options().read(true).write(!read_only).open(&path)?;
        let flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO | if read_only { LO_FLAGS_READ_ONLY } else { 0 };
        let config = LoopConfig {
            fd: backing.as_raw_fd().unsigned_abs(),
            block_size: 0,
            info: LoopInfo { flags, ..EMPTY },
            reserved: [0; 8],
        };
        // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, which is what it is given.
        let request = unsafe { Setter::<LOOP_CONFIGURE, LoopConfig>::new(config) };
        // SAFETY: the request is of the type that its number says; the file it names is borrowed and open.
        unsafe { ioctl(&fd, request) }?;
        Ok(Self { path, fd })
    }

    /// The device that `file` is attached to already, if there is one, held so that it stays.
    ///
    /// # Errors
    /// The file cannot be opened, or /sys cannot be read.
    pub fn find(file: &Path) -> io::Result<Option<Self>> {
        let wanted = std::fs::metadata(file)?;
        for entry in std::fs::read_dir("/sys/block")?.flatten() {
            let name = entry.file_name();
            let is_loop = name.as_encoded_bytes().starts_with(b"loop");
            if !is_loop || !entry.path().join("loop/backing_file").exists() {
                continue;
            }
            if let Some(device) = Self::open(&Path::new("/dev").join(&name), &wanted)? {
                return Ok(Some(device));
            }
        }
        Ok(None)
    }

    /// Opens a device if it is attached to the file that `backing` describes.
    ///
    /// # Errors
    /// The kernel's, other than that there is no such device or that nothing is attached.
    pub fn open(device: &Path, backing: &std::fs::Metadata) -> io::Result<Option<Self>> {
        let Ok(fd) = File::open(device) else { return Ok(None) };
        let Some(info) = status(&fd)? else { return Ok(None) };
        if (info.device, info.inode) != (backing.dev(), backing.ino()) {
            return Ok(None);
        }
        Ok(Some(Self { path: device.to_owned(), fd }))
    }

    /// The device's node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the device as large as its file has become.
    ///
    /// # Errors
    /// The kernel's.
    pub fn follow_size(&self) -> io::Result<()> {
        // SAFETY: LOOP_SET_CAPACITY takes no argument.
        let request = unsafe { NoArg::<LOOP_SET_CAPACITY>::new() };
        // SAFETY: the request is of the type that its number says.
        Ok(unsafe { ioctl(&self.fd, request) }?)
    }

    /// Takes the file off the device now; while it is in use, once the last user lets go.
    ///
    /// # Errors
    /// The kernel's.
    pub fn detach(self) -> io::Result<()> {
        // SAFETY: LOOP_CLR_FD takes no argument.
        let request = unsafe { NoArg::<LOOP_CLR_FD>::new() };
        // SAFETY: the request is of the type that its number says.
        Ok(unsafe { ioctl(&self.fd, request) }?)
    }
}

impl AsFd for LoopDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What is attached; `None` if nothing is.
fn status(device: &File) -> io::Result<Option<LoopInfo>> {
    // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64`.
    let request = unsafe { Getter::<LOOP_GET_STATUS64, LoopInfo>::new() };
    // SAFETY: the request is of the type that its number says.
    match unsafe { ioctl(device, request) } {
        Ok(info) => Ok(Some(info)),
        Err(rustix::io::Errno::NXIO | rustix::io::Errno::NOTTY) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// LOOP_CTL_GET_FREE answers by its return value.
struct GetFree;

// SAFETY: the number is that of LOOP_CTL_GET_FREE, which takes no argument and touches no memory; its return value is not
// negative, as errors are told apart before.
unsafe impl Ioctl for GetFree {
    type Output = u32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut libc::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut libc::c_void) -> rustix::io::Result<u32> {
        u32::try_from(output).map_err(|_| rustix::io::Errno::INVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loop_a_device_is_found_by_its_file_and_goes_with_its_last_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let device = match LoopDevice::attach(&path, true) {
            Ok(device) => device,
            Err(error) => {
                crate::skip("loop_a_device_is_found_by_its_file_and_goes_with_its_last_user", &error);
                return;
            }
        };
        let found = LoopDevice::find(&path).unwrap().unwrap();
        assert_eq!(found.path(), device.path());
        drop((found, device));
        // Other openers (udev, a test beside) may hold a device for a moment.
        for _ in 0..100 {
            if LoopDevice::find(&path).unwrap().is_none() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("the device stayed");
    }
}
