//! fs-verity: files that the kernel verifies whenever it reads them, and that can never be written again.
//!
//! Always SHA-256 over blocks of 4 KiB, without salt and without a signature: the digest depends on nothing but the content.

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// Bytes of a digest.
pub const DIGEST: usize = 32;
const SHA256: u16 = 1;
const BLOCK: u32 = 4096;
/// How often a file that somebody has open for writing is tried again, and after how long.
const TRIES: u32 = 500;
const PAUSE: Duration = Duration::from_millis(2);

/// struct fsverity_enable_arg.
#[repr(C)]
struct EnableArg {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt_ptr: u64,
    sig_size: u32,
    reserved1: u32,
    sig_ptr: u64,
    reserved2: [u64; 11],
}

/// struct fsverity_digest with room for a SHA-256.
#[repr(C)]
struct MeasureArg {
    digest_algorithm: u16,
    digest_size: u16,
    digest: [u8; DIGEST],
}

const FS_IOC_ENABLE_VERITY: Opcode = opcode::write::<EnableArg>(b'f', 133);
/// Its number counts the header only.
const FS_IOC_MEASURE_VERITY: Opcode = opcode::read_write::<[u16; 2]>(b'f', 134);
const _: () = assert!(FS_IOC_ENABLE_VERITY == 0x4080_6685);
const _: () = assert!(FS_IOC_MEASURE_VERITY == 0xc004_6686);
const _: () = assert!(size_of::<EnableArg>() == 128 && std::mem::offset_of!(EnableArg, sig_ptr) == 32);
const _: () = assert!(size_of::<MeasureArg>() == 36 && std::mem::offset_of!(MeasureArg, digest) == 4);

/// Seals a file that this process made, and has open for writing through `file` only: from then on nobody can write to it, and each read is verified. Gives it back
/// open for reading. Costs reading and hashing the file; ext4 also writes it to the disk and waits for that.
///
/// A file cannot be sealed while somebody has it open for writing. A child that another thread forks has, until it executes its program: that is waited for, a second at most.
///
/// # Errors
/// `EOPNOTSUPP`, `ENOTTY`: the file system or the kernel has no fs-verity; `ETXTBSY`: somebody else has it open for writing; the file system's.
pub fn seal(file: File) -> io::Result<File> {
    let sealed = crate::file::reopen_to_read(file)?;
    for _ in 1..TRIES {
        match enable(&sealed) {
            Err(Errno::TXTBSY) => std::thread::sleep(PAUSE),
            other => return other.map(|()| sealed).map_err(io::Error::from),
        }
    }
    enable(&sealed)?;
    Ok(sealed)
}

fn enable(file: impl AsFd) -> rustix::io::Result<()> {
    let argument = EnableArg {
        version: 1,
        hash_algorithm: SHA256.into(),
        block_size: BLOCK,
        salt_size: 0,
        salt_ptr: 0,
        sig_size: 0,
        reserved1: 0,
        sig_ptr: 0,
        reserved2: [0; 11],
    };
    // SAFETY: FS_IOC_ENABLE_VERITY reads one such structure; its pointers are null, with lengths of zero.
    let request = unsafe { Setter::<FS_IOC_ENABLE_VERITY, EnableArg>::new(argument) };
    // SAFETY: the request is of the type that its number says.
    unsafe { ioctl(file, request) }
}

/// The digest that the kernel verifies an open file by; `None` if it is not sealed, or with another algorithm. Costs no reading of its content.
///
/// # Errors
/// The file system's.
pub fn measure(file: impl AsFd) -> io::Result<Option<[u8; DIGEST]>> {
    let mut argument = MeasureArg { digest_algorithm: 0, digest_size: DIGEST as u16, digest: [0; DIGEST] };
    // SAFETY: FS_IOC_MEASURE_VERITY reads the header and writes at most as many bytes behind it as that says; the structure has them.
    let request = unsafe { Updater::<FS_IOC_MEASURE_VERITY, MeasureArg>::new(&mut argument) };
    // SAFETY: the request is of the type that its number says, with the room that its header promises.
    match unsafe { ioctl(file, request) } {
        Ok(()) => {}
        Err(Errno::NODATA | Errno::OVERFLOW | Errno::OPNOTSUPP | Errno::NOTTY) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let whole = argument.digest_algorithm == SHA256 && usize::from(argument.digest_size) == DIGEST;
    Ok(whole.then_some(argument.digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_a_file_is_sealed_or_the_kernel_says_why_not() {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, b"hello\n").unwrap();
        assert_eq!(measure(&file).unwrap(), None);
        match seal(file.try_clone().unwrap()) {
            // The clone is a writer.
            Err(error) if error.raw_os_error() == Some(Errno::TXTBSY.raw_os_error()) => {
                let sealed = seal(file).unwrap();
                // `fsverity digest` of the same.
                let digest = measure(&sealed).unwrap().unwrap();
                assert_eq!(digest[..4], [0x9c, 0x76, 0xee, 0xcc]);
            }
            Err(error) => {
                let refused = Errno::from_io_error(&error);
                assert!(matches!(refused, Some(Errno::OPNOTSUPP | Errno::NOTTY)), "{error}");
                crate::skip("sealing", &format!("no fs-verity here: {error}"));
            }
            Ok(_) => panic!("a file was sealed that somebody has open for writing"),
        }
    }
}
