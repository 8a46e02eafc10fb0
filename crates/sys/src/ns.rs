//! The user and mount namespace of an unprivileged user's store.

/// The number that the user `uid` of this process's user namespace has outside of it; `None` if it has none.
pub fn outside_uid(uid: u32) -> Option<u32> {
    let map = std::fs::read_to_string("/proc/self/uid_map").ok()?;
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(|word| word.parse::<u32>().ok());
        let (inside, outside, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
        (uid.checked_sub(inside)? < count).then(|| outside + (uid - inside))
    })
}
