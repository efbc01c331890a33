//! The WAL tail guard: is the WAL readable from the redo location up to what was known to be flushed?
//!
//! PostgreSQL cannot tell the end of WAL from a missing tail: with the newest segment gone it starts normally, and the
//! commits in it are lost without a word. So before a start after a crash the records are read here, in the order and
//! with the checks of src/backend/access/transam/xlogreader.c: system identifier of each segment, page addresses, record
//! lengths, CRC-32C of each record (access/xlogrecord.h, access/xlog_internal.h). Nothing is written.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::control::{Control, Lsn};

/// Where the WAL stops being readable, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Broken {
    pub at: Lsn,
    pub why: String,
}

const HEADER: u64 = 24; // SizeOfXLogRecord
const SHORT_PAGE_HEADER: u64 = 24; // SizeOfXLogShortPHD
const LONG_PAGE_HEADER: u64 = 40; // SizeOfXLogLongPHD
const FIRST_IS_CONTRECORD: u16 = 0x1;
const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x8;
const XLOG_SWITCH: u8 = 0x40; // catalog/pg_control.h, with resource manager RM_XLOG_ID = 0

/// What a segment is read from.
pub trait Source: Read + Seek {}

impl<T: Read + Seek> Source for T {}

/// Opens a WAL segment by its name: what it is read from, and where in that the segment begins.
pub type Open<'a> = &'a dyn Fn(&str) -> io::Result<(Box<dyn Source>, u64)>;

struct Reader<'a> {
    open: Open<'a>,
    system_identifier: u64,
    timeline: u32,
    segment_size: u64,
    page_size: u64,
    magic: Option<u16>,
    segment: Option<(u64, Box<dyn Source>, u64)>,
    page: Vec<u8>,
    page_at: Option<u64>,
}

/// Reads every record from the redo location of `control` to `end` (a flush LSN: everything before it was on disk).
/// A record that begins before `end` and ends after it may be torn; it was not acknowledged.
pub fn check(pg_wal: &Path, control: &Control, end: Lsn) -> Result<(), Broken> {
    check_in(&|name| Ok((Box::new(open(&pg_wal.join(name))?), 0)), control, end)
}

/// The same, with the segments wherever `open` finds them.
pub fn check_in(open: Open, control: &Control, end: Lsn) -> Result<(), Broken> {
    let mut reader = Reader {
        open,
        system_identifier: control.system_identifier,
        timeline: control.timeline,
        segment_size: u64::from(control.wal_segment_size),
        page_size: u64::from(control.wal_block_size),
        magic: None,
        segment: None,
        page: vec![0; control.wal_block_size as usize],
        page_at: None,
    };
    let mut at = control.redo.0;
    while at < end.0 {
        at = reader.record(at, end.0).map_err(|why| Broken { at: Lsn(at), why })?;
    }
    Ok(())
}

/// Opens a segment that is a file of its own.
pub fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path)
}

impl Reader<'_> {
    /// Reads the record at `at` and returns where the next one begins.
    fn record(&mut self, at: u64, end: u64) -> Result<u64, String> {
        let at = self.skip_page_header(at)?;
        if at + 4 > end {
            return Ok(end);
        }
        self.load(at - at % self.page_size)?;
        let offset = (at % self.page_size) as usize;
        let length = u64::from(u32_at(&self.page, offset));
        if !(HEADER..=1 << 30).contains(&length) {
            return Err(format!("invalid record length {length}"));
        }
        let mut header = [0u8; HEADER as usize];
        let mut filled = 0usize;
        let mut crc = 0u32;
        let mut left = length;
        let mut position = at;
        loop {
            let room = self.page_size - position % self.page_size;
            let take = room.min(left);
            let from = (position % self.page_size) as usize;
            let chunk = &self.page[from..from + take as usize];
            let to_header = (HEADER as usize - filled).min(chunk.len());
            header[filled..filled + to_header].copy_from_slice(&chunk[..to_header]);
            filled += to_header;
            crc = crc32c::crc32c_append(crc, &chunk[to_header..]);
            left -= take;
            position += take;
            if left == 0 {
                break;
            }
            // The rest is on the next page, behind its header.
            if position >= end {
                return Ok(end);
            }
            self.load(position)?;
            let info = u16_at(&self.page, 2);
            if info & FIRST_IS_OVERWRITE_CONTRECORD != 0 {
                // Crash recovery gave this record up and wrote on behind it (xlogrecovery.c).
                return Ok(position);
            }
            let remaining = u64::from(u32_at(&self.page, 16));
            if info & FIRST_IS_CONTRECORD == 0 || remaining != left {
                return Err(format!(
                    "the continuation of the record at {} is missing on the page at {}",
                    Lsn(at),
                    Lsn(position)
                ));
            }
            position += self.header_size(position);
        }
        if position > end {
            return Ok(end);
        }
        crc = crc32c::crc32c_append(crc, &header[..20]);
        if crc != u32_at(&header, 20) {
            return Err(format!("the checksum of the record at {} does not match", Lsn(at)));
        }
        let (info, resource_manager) = (header[16], header[17]);
        if resource_manager == 0 && info & 0xf0 == XLOG_SWITCH {
            return Ok(position.next_multiple_of(self.segment_size));
        }
        // Records begin at multiples of 8 (MAXALIGN).
        Ok(position.next_multiple_of(8))
    }

    fn header_size(&self, page: u64) -> u64 {
        if page.is_multiple_of(self.segment_size) { LONG_PAGE_HEADER } else { SHORT_PAGE_HEADER }
    }

    /// At the start of a page the next record begins behind the page's header, and behind what is left of a record that
    /// was given up.
    fn skip_page_header(&mut self, at: u64) -> Result<u64, String> {
        if !at.is_multiple_of(self.page_size) {
            return Ok(at);
        }
        self.load(at)?;
        Ok(at + self.header_size(at))
    }

    /// Makes `page` the page that begins at `at`.
    fn load(&mut self, at: u64) -> Result<(), String> {
        if self.page_at == Some(at) {
            return Ok(());
        }
        let number = at / self.segment_size;
        if self.segment.as_ref().is_none_or(|(open, ..)| *open != number) {
            let name = segment_name(self.timeline, number, self.segment_size);
            let (mut file, base) = (self.open)(&name).map_err(|e| format!("could not open WAL segment {name}: {e}"))?;
            // xlp_sysid of XLogLongPageHeaderData.
            let mut identifier = [0u8; 8];
            read_at(&mut file, &mut identifier, base + SHORT_PAGE_HEADER)
                .map_err(|e| format!("could not read WAL segment {name}: {e}"))?;
            if u64_at(&identifier, 0) != self.system_identifier {
                return Err(format!("WAL segment {name} is of another cluster"));
            }
            self.segment = Some((number, file, base));
        }
        let Some((_, file, base)) = &mut self.segment else { unreachable!() };
        self.page_at = None;
        read_at(file, &mut self.page, *base + at % self.segment_size)
            .map_err(|e| format!("could not read the WAL page at {}: {e}", Lsn(at)))?;
        let magic = u16_at(&self.page, 0);
        let address = u64_at(&self.page, 8);
        if address != at || magic == 0 || *self.magic.get_or_insert(magic) != magic {
            // A recycled segment still holds its old pages here.
            return Err(format!("the WAL page at {} holds something else (address {})", Lsn(at), Lsn(address)));
        }
        self.page_at = Some(at);
        Ok(())
    }
}

fn read_at(source: &mut dyn Source, buffer: &mut [u8], at: u64) -> io::Result<()> {
    source.seek(SeekFrom::Start(at))?;
    source.read_exact(buffer)
}

/// Whether all segments in `pg_wal` that were written to, and at least one, are of the cluster with this system identifier.
pub fn is_of(pg_wal: &Path, system_identifier: u64) -> io::Result<bool> {
    let mut found = false;
    for entry in fs::read_dir(pg_wal)? {
        let name = entry?.file_name();
        if name.len() != 24 || !name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit) {
            continue;
        }
        let mut header = [0; LONG_PAGE_HEADER as usize];
        read_at(&mut open(&pg_wal.join(name))?, &mut header, 0)?;
        // One that was only made beforehand is all zeros.
        if u16_at(&header, 0) != 0 {
            if u64_at(&header, SHORT_PAGE_HEADER as usize) != system_identifier {
                return Ok(false);
            }
            found = true;
        }
    }
    Ok(found)
}

/// `000000010000000000000003` (access/xlog_internal.h, XLogFileName).
pub fn segment_name(timeline: u32, number: u64, segment_size: u64) -> String {
    let per_id = 0x1_0000_0000 / segment_size;
    format!("{timeline:08X}{:08X}{:08X}", number / per_id, number % per_id)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | (u32::from(u16_at(bytes, at + 2)) << 16)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | (u64::from(u32_at(bytes, at + 4)) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    const SEGMENT: u64 = 1 << 20;
    const PAGE: u64 = 8192;
    const START: u64 = 3 * SEGMENT;

    /// WAL with records of these payload lengths, written from the beginning of segment 3.
    fn wal(payloads: &[usize]) -> (Vec<u8>, Vec<u64>) {
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        let push = |bytes: &mut Vec<u8>, data: &[u8], mut left_of_record: usize| {
            for byte in data {
                if (bytes.len() as u64).is_multiple_of(PAGE) {
                    let at = START + bytes.len() as u64;
                    let mut header = vec![0u8; if at.is_multiple_of(SEGMENT) { 40 } else { 24 }];
                    header[0..2].copy_from_slice(&0xD110u16.to_le_bytes());
                    header[8..16].copy_from_slice(&at.to_le_bytes());
                    if let Some(identifier) = header.get_mut(24..32) {
                        identifier.copy_from_slice(&control().system_identifier.to_le_bytes());
                    }
                    if left_of_record > 0 && left_of_record < usize::MAX {
                        header[2..4].copy_from_slice(&FIRST_IS_CONTRECORD.to_le_bytes());
                        header[16..20].copy_from_slice(&(left_of_record as u32).to_le_bytes());
                    }
                    bytes.extend(header);
                }
                bytes.push(*byte);
                left_of_record = left_of_record.saturating_sub(1);
            }
        };
        for (index, payload) in payloads.iter().enumerate() {
            let length = HEADER as usize + payload;
            let mut record = vec![index as u8; length];
            record[0..4].copy_from_slice(&(length as u32).to_le_bytes());
            record[17] = 10;
            let crc = crc32c::crc32c_append(crc32c::crc32c(&record[24..]), &record[..20]);
            record[20..24].copy_from_slice(&crc.to_le_bytes());
            let at_page_start = (bytes.len() as u64).is_multiple_of(PAGE);
            if at_page_start {
                push(&mut bytes, &record[..1], usize::MAX);
                push(&mut bytes, &record[1..], length - 1);
            } else {
                push(&mut bytes, &record, length);
            }
            ends.push(START + bytes.len() as u64);
            while !bytes.len().is_multiple_of(8) {
                bytes.push(0);
            }
        }
        bytes.resize(bytes.len().next_multiple_of(SEGMENT as usize), 0);
        (bytes, ends)
    }

    fn written(name: &str, bytes: &[u8]) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("pg-recovery-wal-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        for (index, segment) in bytes.chunks(SEGMENT as usize).enumerate() {
            std::fs::write(folder.join(segment_name(1, 3 + index as u64, SEGMENT)), segment).unwrap();
        }
        folder
    }

    fn control() -> Control {
        let mut control = Control::parse(&crate::control::tests::sample(6, START + 40, 1)).unwrap();
        control.wal_segment_size = SEGMENT as u32;
        control
    }

    fn payloads() -> Vec<usize> {
        (0..400).map(|i| (i * 37) % 9000).collect()
    }

    #[test]
    fn whole_wal_is_accepted_up_to_any_flush_position() {
        let (bytes, ends) = wal(&payloads());
        assert!(bytes.len() as u64 > SEGMENT, "the sample must cross a segment");
        let folder = written("whole", &bytes);
        let last = *ends.last().unwrap();
        for end in [START, START + 41, ends[0], ends[7] + 5, last - 1, last] {
            assert_eq!(check(&folder, &control(), Lsn(end)), Ok(()), "{end}");
        }
    }

    #[test]
    fn wal_tells_whose_it_is() {
        let folder = written("whose", &wal(&payloads()).0);
        let ours = control().system_identifier;
        assert!(is_of(&folder, ours).unwrap() && !is_of(&folder, ours + 1).unwrap());
        // Neither one that nothing was written to yet nor what is no segment says anything.
        for (name, content) in [(segment_name(1, 9, SEGMENT), [0; 100]), ("00000002.history".into(), [7; 100])] {
            std::fs::write(folder.join(name), content).unwrap();
        }
        assert!(is_of(&folder, ours).unwrap());
        std::fs::write(folder.join(segment_name(1, 10, SEGMENT)), [7; 100]).unwrap();
        assert!(!is_of(&folder, ours).unwrap(), "one that is another's is enough");
        std::fs::remove_file(folder.join(segment_name(1, 10, SEGMENT))).unwrap();
        for number in 3..9 {
            let _ = std::fs::remove_file(folder.join(segment_name(1, number, SEGMENT)));
        }
        assert!(!is_of(&folder, ours).unwrap(), "nothing says whose it is");
    }

    #[test]
    fn a_missing_tail_is_noticed() {
        let (bytes, ends) = wal(&payloads());
        let folder = written("tail", &bytes);
        std::fs::remove_file(folder.join(segment_name(1, 4, SEGMENT))).unwrap();
        let broken = check(&folder, &control(), Lsn(*ends.last().unwrap())).unwrap_err();
        assert!(broken.why.contains("000000010000000000000004"), "{}", broken.why);
        // Nothing was known to be flushed there: nothing to miss.
        assert_eq!(check(&folder, &control(), Lsn(START + SEGMENT - 100)), Ok(()));
    }

    #[test]
    fn zeros_a_flipped_byte_and_a_recycled_page_are_noticed() {
        let (sound, ends) = wal(&payloads());
        let end = Lsn(*ends.last().unwrap());
        let mut zeroed = sound.clone();
        zeroed[300_000..].fill(0);
        let mut flipped = sound.clone();
        flipped[500_000] ^= 1;
        let mut recycled = sound.clone();
        recycled[5 * 8192 + 8] ^= 0x40;
        for (name, bytes) in [("zeroed", zeroed), ("flipped", flipped), ("recycled", recycled)] {
            assert!(check(&written(name, &bytes), &control(), end).is_err(), "{name}");
        }
    }

    #[test]
    fn wal_of_another_cluster_is_noticed() {
        let (bytes, ends) = wal(&payloads());
        let other = Control { system_identifier: 5, ..control() };
        let broken = check(&written("other", &bytes), &other, Lsn(ends[0])).unwrap_err();
        assert!(broken.why.contains("of another cluster"), "{}", broken.why);
    }

    #[test]
    fn segments_are_named_as_postgresql_names_them() {
        assert_eq!(segment_name(1, 0x103, 16 << 20), "000000010000000100000003");
    }
}
