//! Which boot of the machine this is.

use std::io;
use std::sync::OnceLock;

/// The kernel's random id of this boot. Anything recorded with another one (mounts, devices) is gone.
///
/// # Errors
/// /proc is not mounted.
pub fn id() -> io::Result<&'static str> {
    static ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = ID.get() {
        return Ok(id);
    }
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(ID.get_or_init(|| text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_boot_id_is_a_uuid() {
        assert_eq!(super::id().unwrap().len(), 36);
    }
}
