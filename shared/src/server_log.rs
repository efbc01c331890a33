//! The end of a server log.

use std::io::{Read, Result, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const LIMIT: u64 = 64 << 10;

/// What was logged behind `since`, and no more than the last 64 KiB of it.
pub fn tail(file: &Path, since: u64) -> Result<String> {
    // Without blocking on a pipe that somebody put there.
    let mut file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    let length = file.metadata()?.len();
    // A shorter file than before is a new one: it was rotated.
    let since = if since <= length { since } else { 0 };
    file.seek(SeekFrom::Start(since.max(length.saturating_sub(LIMIT))))?;
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_read_and_all_of_a_rotated_file() {
        let file = std::env::temp_dir().join(format!("pg-recovery-log-{}", std::process::id()));
        std::fs::write(&file, "old\nnew\n").unwrap();
        assert_eq!(tail(&file, 4).unwrap(), "new\n");
        assert_eq!(tail(&file, 9).unwrap(), "old\nnew\n");
        std::fs::write(&file, "x".repeat(LIMIT as usize + 5)).unwrap();
        assert_eq!(tail(&file, 0).unwrap().len() as u64, LIMIT);
        std::fs::remove_file(&file).unwrap();
    }
}
