//! Random bytes from the kernel.

use rustix::rand::{GetRandomFlags, getrandom};
use std::fmt::Write as _;
use std::io;

/// `N` random bytes.
///
/// # Errors
/// The kernel has no getrandom.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0u8; N];
    let mut filled = 0;
    while filled < N {
        filled += rustix::io::retry_on_intr(|| getrandom(&mut bytes[filled..], GetRandomFlags::empty()))?;
    }
    Ok(bytes)
}

/// `N` random bytes as `2 * N` hexadecimal digits: for names of temporary files and ids.
///
/// # Errors
/// The kernel has no getrandom.
pub fn hex<const N: usize>() -> io::Result<String> {
    let mut text = String::with_capacity(2 * N);
    for byte in bytes::<N>()? {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #[test]
    fn random_bytes_differ() {
        assert_ne!(super::bytes::<32>().unwrap(), super::bytes::<32>().unwrap());
        assert_eq!(super::hex::<8>().unwrap().len(), 16);
    }
}
