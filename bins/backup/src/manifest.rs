//! `backup_manifest`: what pg_basebackup says is in a backup (manual, "Backup Manifest Format").

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use shared::control::Lsn;
use shared::state;

pub const NAME: &str = "backup_manifest";
/// A file of a cluster with ten million of them has about this size.
const LIMIT: u64 = 2 << 30;

#[derive(Debug, PartialEq)]
pub struct Manifest {
    /// Size and SHA-256 of each file by its path in the data directory.
    pub files: HashMap<String, (u64, String)>,
    pub timeline: u32,
    pub start: Lsn,
    pub end: Lsn,
}

#[derive(Deserialize)]
struct Text {
    #[serde(rename = "Files")]
    files: Vec<File>,
    #[serde(rename = "WAL-Ranges")]
    ranges: Vec<Range>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    path: Option<String>,
    /// In hexadecimal, when it is not UTF-8.
    #[serde(rename = "Encoded-Path")]
    encoded: Option<String>,
    size: u64,
    #[serde(default)]
    checksum: String,
}

#[derive(Deserialize)]
struct Range {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

impl Manifest {
    pub fn read(backup: &Path) -> Result<Manifest, String> {
        let bytes = state::read(&backup.join(NAME), LIMIT);
        Self::parse(&bytes.map_err(|e| format!("could not read backup_manifest: {e}"))?)
    }

    fn parse(bytes: &[u8]) -> Result<Manifest, String> {
        let damaged = |why: &str| format!("backup_manifest is damaged: {why}");
        let text: Text = serde_json::from_slice(bytes).map_err(|e| damaged(&e.to_string()))?;
        // The last line holds the checksum of all lines before it.
        let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let last = body.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if hex(&Sha256::digest(&bytes[..last])) != text.checksum {
            return Err(damaged("its checksum does not match"));
        }
        let [range] = text.ranges.as_slice() else {
            return Err("the backup spans more than one timeline".into());
        };
        let lsn = |text: &str| Lsn::parse(text).ok_or_else(|| damaged("it has no WAL range"));
        let files = text.files.into_iter().map(|file| {
            let path = file.path.or_else(|| String::from_utf8(unhex(&file.encoded?)?).ok());
            Ok((path.ok_or_else(|| damaged("a file has no name"))?, (file.size, file.checksum)))
        });
        Ok(Manifest {
            files: files.collect::<Result<_, String>>()?,
            timeline: range.timeline,
            start: lsn(&range.start)?,
            end: lsn(&range.end)?,
        })
    }

    /// Bytes that all files take when they are restored.
    pub fn size(&self) -> u64 {
        self.files.values().map(|(size, _)| size).sum()
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn sample(files: &str) -> Vec<u8> {
        let body = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{files}],\n\"WAL-Ranges\": [\n\
             {{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }}\n],\n"
        );
        let checksum = hex(&Sha256::digest(body.as_bytes()));
        format!("{body}\"Manifest-Checksum\": \"{checksum}\"}}\n").into_bytes()
    }

    #[test]
    fn files_and_wal_are_read_and_a_changed_byte_is_noticed() {
        let files = "{ \"Path\": \"base/1/2\", \"Size\": 7, \"Checksum\": \"ab\" },\n\
                     { \"Encoded-Path\": \"612f62\", \"Size\": 1, \"Checksum\": \"cd\" }";
        let sound = sample(files);
        let manifest = Manifest::parse(&sound).unwrap();
        assert_eq!(manifest.files["base/1/2"], (7, "ab".into()));
        assert_eq!((manifest.files["a/b"].0, manifest.size()), (1, 8));
        assert_eq!((manifest.start, manifest.end), (Lsn(0x2000028), Lsn(0x2000100)));
        let changed = String::from_utf8(sound).unwrap().replace("\"Size\": 7", "\"Size\": 8");
        assert!(Manifest::parse(changed.as_bytes()).unwrap_err().contains("checksum"));
    }
}
