//! The list of users: a CSV file, checked as a whole before anybody is sent anything, and never in memory as a whole.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs::File,
    hash::{BuildHasher as _, RandomState},
    io::{self, BufReader, Read, Seek as _},
    path::Path,
};

use anyhow::{Context as _, bail};
use csv::{ByteRecord, Reader, ReaderBuilder, Trim};
use sha2::{Digest as _, Sha256};
use wechat::OpenId;

/// The names of the column that holds the users.
const COLUMNS: [&str; 2] = ["open_id", "openid"];
/// So many bad lines are named.
const NAMED: usize = 10;
/// A line is no longer: a quote that is never closed would make all of the file one.
const LONGEST_LINE: usize = 1 << 20;

/// A list of users, to be read as often as needed.
#[derive(Debug)]
pub(super) struct List {
    file: File,
    name: String,
}

/// A list without a mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checked {
    /// How many it names; who is named twice counts twice.
    pub(super) users: u64,
    /// Of the users in their order.
    pub(super) digest: String,
}

impl List {
    /// Opens a list; `-` is standard input. What cannot be read twice is copied into a file without a name.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Self::copy(io::stdin().lock(), "standard input".to_owned());
        }
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("{name} cannot be opened"))?;
        if file.metadata()?.is_file() {
            return Ok(Self { file, name });
        }
        Self::copy(file, name)
    }

    fn copy(mut from: impl Read, name: String) -> anyhow::Result<Self> {
        let mut file = tempfile::tempfile()?;
        io::copy(&mut from, &mut file).with_context(|| format!("{name} cannot be read"))?;
        Ok(Self { file, name })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Reads all of it. Every line that names no user is a mistake.
    pub(super) fn check(&self) -> anyhow::Result<Checked> {
        let context = || format!("{} is no list of users", self.name);
        let mut users = self.users()?;
        let (mut named, mut bad) = (Vec::new(), 0);
        loop {
            match users.next() {
                Ok(None) => break,
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(NotAUser { at }))) => {
                    bad += 1;
                    if named.len() < NAMED {
                        named.push(at);
                    }
                }
                Err(error) => {
                    let lines = self.lines(&[users.at()])?;
                    let line = lines.first().copied().unwrap_or_default();
                    return Err(error.context(format!("line {line}")).context(context()));
                }
            }
        }
        let checked = users.checked();
        if bad > 0 {
            let error = anyhow::Error::msg(complaint(&self.lines(&named)?, bad));
            return Err(error.context(context()));
        }
        if checked.users == 0 {
            return Err(anyhow::Error::msg("it names nobody").context(context()));
        }
        Ok(checked)
    }

    /// How many it names; who is named twice counts once.
    pub(super) fn distinct(&self) -> anyhow::Result<u64> {
        let mut users = self.users()?;
        // A list may be of millions: their hashes are a tenth of them, and as good as never the same.
        let (state, mut known) = (RandomState::new(), HashSet::new());
        while let Some(user) = users.next()? {
            known.extend(user.ok().map(|user| state.hash_one(user)));
        }
        Ok(known.len() as u64)
    }

    /// The numbers of the lines at these places, which go upwards. Blank lines before a line belong to it as the csv
    /// reader counts, and so may the end of the line before.
    fn lines(&self, places: &[u64]) -> anyhow::Result<Vec<u64>> {
        let mut file = &self.file;
        file.rewind()?;
        let mut places = places.iter().copied().peekable();
        let (mut lines, mut line) = (Vec::new(), 1);
        for (at, byte) in (0..).zip(BufReader::new(file).bytes()) {
            let byte = byte?;
            let Some(place) = places.peek() else {
                break;
            };
            if at >= *place && !matches!(byte, b'\r' | b'\n') {
                lines.push(line);
                places.next();
            }
            if byte == b'\n' {
                line += 1;
            }
        }
        lines.extend(places.map(|_| line));
        Ok(lines)
    }

    /// Its users, from the first on.
    pub(super) fn users(&self) -> anyhow::Result<Users<&File>> {
        let mut file = &self.file;
        file.rewind()?;
        Ok(Users::of(file))
    }
}

/// Reads one user after the other: of the column named `open_id`, or of the only one.
pub(super) struct Users<R> {
    reader: Reader<Lines<R>>,
    record: ByteRecord,
    column: Option<usize>,
    at: u64,
    seen: u64,
    digest: Sha256,
}

impl<R: Read> Users<R> {
    fn of(text: R) -> Self {
        Self {
            reader: ReaderBuilder::new()
                .has_headers(false)
                .flexible(true)
                .trim(Trim::All)
                .from_reader(Lines {
                    text,
                    since_the_last: 0,
                }),
            record: ByteRecord::new(),
            column: None,
            at: 0,
            seen: 0,
            digest: Sha256::new(),
        }
    }

    /// The next user, or a line that names none; nothing at the end.
    pub(super) fn next(&mut self) -> anyhow::Result<Option<Result<&str, NotAUser>>> {
        loop {
            self.reader.get_mut().since_the_last = 0;
            self.at = self.reader.position().byte();
            if !self.reader.read_byte_record(&mut self.record)? {
                return Ok(None);
            }
            if self.record.iter().all(<[u8]>::is_empty) {
                continue;
            }
            if self.column.is_some() {
                break;
            }
            let (column, is_head) = column(&self.record)?;
            self.column = Some(column);
            if !is_head {
                break;
            }
        }
        let field = self.record.get(self.column.unwrap_or_default());
        let Some(open_id) = field.and_then(open_id) else {
            return Ok(Some(Err(NotAUser { at: self.at })));
        };
        self.seen += 1;
        self.digest.update(open_id);
        self.digest.update([0]);
        Ok(Some(Ok(open_id)))
    }

    /// The byte where the latest line begins, or an earlier one of those between the lines.
    fn at(&self) -> u64 {
        self.at
    }

    /// How many there were until now.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// What was read until now.
    pub(super) fn checked(self) -> Checked {
        let digest = self.digest.finalize();
        Checked {
            users: self.seen,
            digest: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

/// A line that names no user, by a byte at its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotAUser {
    at: u64,
}

/// Which column holds the users, by the first line; whether that line is the columns' names.
fn column(first: &ByteRecord) -> anyhow::Result<(usize, bool)> {
    if let Some(column) = first.iter().position(is_column) {
        return Ok((column, true));
    }
    let start = first.get(0).unwrap_or_default();
    if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
        bail!("it is UTF-16: save it as CSV in UTF-8");
    }
    if first.iter().skip(1).all(<[u8]>::is_empty) {
        return Ok((0, false));
    }
    bail!("none of its columns is named open_id, so that nobody knows which one it is")
}

/// A user as WeChat gives them: what comes out of a cell otherwise is a mistake, though it may be short enough.
fn open_id(field: &[u8]) -> Option<&str> {
    let is_fit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let text = std::str::from_utf8(field).ok()?;
    (field.iter().all(is_fit) && OpenId::try_from(text).is_ok()).then_some(text)
}

fn is_column(field: &[u8]) -> bool {
    COLUMNS
        .iter()
        .any(|name| field.eq_ignore_ascii_case(name.as_bytes()))
}

/// Which lines are bad, of so many; the field itself may be anything, and is not shown.
fn complaint(named: &[u64], bad: usize) -> String {
    let mut text = String::new();
    for line in named {
        // Writing to a text does not fail.
        let _ = writeln!(text, "line {line}: not an openid, as WeChat gives it");
    }
    match bad.saturating_sub(named.len()) {
        0 => {}
        1 => text.push_str("and 1 line more\n"),
        more => {
            let _ = writeln!(text, "and {more} lines more");
        }
    }
    text.push_str("nothing was sent");
    text
}

/// Gives up on a line that does not end.
struct Lines<R> {
    text: R,
    /// Bytes that were read since the last line ended.
    since_the_last: usize,
}

impl<R: Read> Read for Lines<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since_the_last > LONGEST_LINE {
            return Err(io::Error::other(
                "it goes on for more than a megabyte: is a quote not closed?",
            ));
        }
        let read = self.text.read(buffer)?;
        self.since_the_last += read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: impl AsRef<[u8]>) -> List {
        List::copy(text.as_ref(), "users.csv".to_owned()).unwrap()
    }

    fn all(list: &List) -> Vec<String> {
        let mut users = list.users().unwrap();
        let mut all = Vec::new();
        while let Some(user) = users.next().unwrap() {
            all.push(user.unwrap().to_owned());
        }
        all
    }

    fn complaint_of(text: impl AsRef<[u8]>) -> String {
        format!("{:#}", list(text).check().unwrap_err())
    }

    #[test]
    fn lists_are_taken_as_spreadsheets_write_them() {
        let plain = list("oA\noB\n").check().unwrap();
        assert_eq!(plain.users, 2);
        for text in [
            "oA\noB\n",
            "\u{feff}oA\r\n\r\n  \r\noB",
            "open_id\noA\noB",
            "\u{feff}OpenID,name\noA,小明\noB\n",
            "name,open_id\n小明,oA\n\"Wang, \"\"W\"\"\",\"oB\"\n,\n",
            "oA,\n oB ,\n",
        ] {
            let list = list(text);
            assert_eq!(list.check().unwrap(), plain, "{text:?}");
            assert_eq!(all(&list), ["oA", "oB"], "{text:?}");
        }
        // Names as a Chinese Excel writes them, in GBK.
        let list = list(b"name,open_id\n\xd0\xa1\xc3\xf7,oA\n,oB\n");
        assert_eq!(list.check().unwrap(), plain);
    }

    #[test]
    fn the_digest_is_of_the_users_in_their_order() {
        let digest = |text: &str| list(text).check().unwrap().digest;
        assert_ne!(digest("oA\noB\n"), digest("oB\noA\n"));
        assert_ne!(digest("oA\noB\n"), digest("oA\noB\noB\n"));
        assert_ne!(digest("oA\noB\n"), digest("oAoB\n"));
    }

    #[test]
    fn bad_lines_are_named() {
        let text = "open_id,name\noA,a\n小明,b\n\n,c\no B,d\n";
        assert_eq!(
            complaint_of(text),
            "users.csv is no list of users: \
             line 3: not an openid, as WeChat gives it\n\
             line 5: not an openid, as WeChat gives it\n\
             line 6: not an openid, as WeChat gives it\n\
             nothing was sent"
        );
        let said = complaint_of("小\n".repeat(11));
        assert!(
            said.ends_with("and 1 line more\nnothing was sent"),
            "{said}"
        );
        let said = complaint_of("小\n".repeat(12));
        assert!(said.contains("and 2 lines more"), "{said}");
    }

    #[test]
    fn what_is_no_list_is_told() {
        for (text, why) in [
            (&b""[..], "it names nobody"),
            (b"name,open_id\n", "it names nobody"),
            (
                b"\nname,phone\n",
                "line 2: none of its columns is named open_id",
            ),
            (b"open_id;name\noA;a\n", "line 1: not an openid"),
            (b"\xff\xfeo\0A\0\n\0", "it is UTF-16"),
        ] {
            let said = complaint_of(text);
            assert!(said.contains(why), "{said}");
        }
        let unclosed = format!("open_id,name\noA,\"a\n{}", "oB,b\n".repeat(1 << 18));
        let said = complaint_of(unclosed);
        assert!(
            said.contains("line 2: ") && said.contains("is a quote not closed?"),
            "{said}"
        );
    }
}
