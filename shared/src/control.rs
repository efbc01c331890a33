//! `global/pg_control`: what the data directory says about itself.
//!
//! Layout of ControlFileData, src/include/catalog/pg_control.h, for PG_CONTROL_VERSION 1300 (PostgreSQL 13-16), 1700 (17)
//! and 1800 (18), little-endian 64-bit builds. All fields used here are at the same offsets in all of them; the checksum
//! is not.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::state;

pub const NAME: &str = "global/pg_control";

/// A position in the WAL.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `16/B374D848`
    pub fn parse(text: &str) -> Option<Lsn> {
        let (high, low) = text.trim().split_once('/')?;
        let part = |hex| u32::from_str_radix(hex, 16).ok();
        Some(Lsn((u64::from(part(high)?) << 32) | u64::from(part(low)?)))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 as u32)
    }
}

/// DBState, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DbState {
    StartingUp,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
}

impl DbState {
    /// The server ended in its own time.
    pub fn is_clean(self) -> bool {
        matches!(self, DbState::ShutDown | DbState::ShutDownInRecovery)
    }
}

impl fmt::Display for DbState {
    /// As pg_controldata prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DbState::StartingUp => "starting up",
            DbState::ShutDown => "shut down",
            DbState::ShutDownInRecovery => "shut down in recovery",
            DbState::ShuttingDown => "shutting down",
            DbState::InCrashRecovery => "in crash recovery",
            DbState::InArchiveRecovery => "in archive recovery",
            DbState::InProduction => "in production",
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Control {
    pub system_identifier: u64,
    pub state: DbState,
    pub checkpoint: Lsn,
    pub redo: Lsn,
    pub timeline: u32,
    /// minRecoveryPointTLI: ahead of `timeline` from a promotion to the next checkpoint.
    pub recovery_timeline: u32,
    pub wal_segment_size: u32,
    pub wal_block_size: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ControlError {
    Missing,
    /// Too short, or its checksum is wrong: it must not be believed.
    Corrupt(String),
    /// Sound, but of a version that this program does not know.
    Unknown(u32),
    Unreadable(String),
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlError::Missing => f.write_str("pg_control is missing"),
            ControlError::Corrupt(why) => write!(f, "pg_control is corrupt: {why}"),
            ControlError::Unknown(version) => {
                write!(f, "pg_control has version {version}, which this program does not know")
            }
            ControlError::Unreadable(why) => write!(f, "pg_control cannot be read: {why}"),
        }
    }
}

impl Control {
    /// Reads the file with its bytes; call it as the owner of the cluster. A running server may be writing it, so a bad
    /// checksum is looked at again up to ten times, as the PostgreSQL tools do (common/controldata_utils.c).
    pub fn read(data_directory: &Path) -> Result<(Control, Vec<u8>), ControlError> {
        let path = data_directory.join(NAME);
        let mut last = ControlError::Missing;
        for attempt in 0..10 {
            if attempt > 0 {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            match state::read(&path, 8192) {
                Ok(bytes) => match Self::parse(&bytes) {
                    Ok(control) => return Ok((control, bytes)),
                    Err(why @ ControlError::Corrupt(_)) => last = why,
                    Err(why) => return Err(why),
                },
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(ControlError::Missing),
                Err(e) => return Err(ControlError::Unreadable(e.to_string())),
            }
        }
        Err(last)
    }

    pub fn parse(bytes: &[u8]) -> Result<Control, ControlError> {
        let corrupt = |why: &str| ControlError::Corrupt(why.to_string());
        if bytes.len() < 296 {
            return Err(ControlError::Corrupt(format!("{} bytes instead of 8192", bytes.len())));
        }
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | (u64::from(u32_at(at + 4)) << 32);
        let crc_at = match u32_at(8) {
            1300 | 1700 => 288,
            1800 => 292,
            // A version that cannot be true is damage; another one is a PostgreSQL that this program does not know.
            version @ 900..=9999 => return Err(ControlError::Unknown(version)),
            version => return Err(ControlError::Corrupt(format!("impossible version {version}"))),
        };
        if crc32c::crc32c(&bytes[..crc_at]) != u32_at(crc_at) {
            return Err(corrupt("its checksum does not match"));
        }
        let state = match u32_at(16) {
            0 => DbState::StartingUp,
            1 => DbState::ShutDown,
            2 => DbState::ShutDownInRecovery,
            3 => DbState::ShuttingDown,
            4 => DbState::InCrashRecovery,
            5 => DbState::InArchiveRecovery,
            6 => DbState::InProduction,
            _ => return Err(corrupt("impossible state")),
        };
        let (segment, block) = (u32_at(228), u32_at(224));
        // Limits of the WAL segment size: src/include/access/xlog_internal.h, IsValidWalSegSize.
        if !segment.is_power_of_two()
            || !(1 << 20..=1 << 30).contains(&segment)
            || !block.is_power_of_two()
            || block < 1024
        {
            return Err(corrupt("impossible WAL segment size"));
        }
        Ok(Control {
            system_identifier: u64_at(0),
            state,
            checkpoint: Lsn(u64_at(32)),
            redo: Lsn(u64_at(40)),
            timeline: u32_at(48),
            recovery_timeline: u32_at(144),
            wal_segment_size: segment,
            wal_block_size: block,
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A pg_control as PostgreSQL 15 would write it.
    pub fn sample(state: u32, redo: u64, timeline: u32) -> Vec<u8> {
        let mut bytes = vec![0; 8192];
        bytes[0..8].copy_from_slice(&7_000_000_000_000_000_001u64.to_le_bytes());
        bytes[8..12].copy_from_slice(&1300u32.to_le_bytes());
        bytes[16..20].copy_from_slice(&state.to_le_bytes());
        bytes[32..40].copy_from_slice(&(redo + 100).to_le_bytes());
        bytes[40..48].copy_from_slice(&redo.to_le_bytes());
        bytes[48..52].copy_from_slice(&timeline.to_le_bytes());
        bytes[224..228].copy_from_slice(&8192u32.to_le_bytes());
        bytes[228..232].copy_from_slice(&(16u32 << 20).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..288]);
        bytes[288..292].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn a_sound_file_is_read() {
        let control = Control::parse(&sample(6, 0x3000028, 2)).unwrap();
        assert_eq!(control.state, DbState::InProduction);
        assert_eq!((control.redo.to_string().as_str(), control.timeline), ("0/3000028", 2));
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let sound = sample(1, 0x3000028, 1);
        for at in 0..292 {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x10;
            assert!(Control::parse(&bytes).is_err(), "byte {at}");
        }
        assert!(matches!(Control::parse(&sound[..100]), Err(ControlError::Corrupt(_))));
    }

    #[test]
    fn lsns_are_written_as_postgresql_writes_them() {
        for text in ["0/3003DB8", "16/B374D848", "FFFFFFFF/FFFFFFFF"] {
            assert_eq!(Lsn::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Lsn::parse("xyz"), None);
    }
}
