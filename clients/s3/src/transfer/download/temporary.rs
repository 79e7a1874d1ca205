//! The file beside the target that becomes it. It is locked while it is in use, so that what a killed process
//! left is told from what another one is writing.

use super::range::Version;
use crate::{
    checksum::{Crc, Sum},
    transfer::part::{self, OutOfTime, Part},
};
use mainstay_policy::Error;
use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

const PREFIX: &str = ".mainstay-";
const PART: &str = "part";
/// Beside a file that is to be resumed: which version it is of, and the ranges that are there.
const NOTES: &str = "notes";

pub(crate) struct Temporary {
    file: Arc<File>,
    path: PathBuf,
    target: PathBuf,
    /// Only if it is to be resumed.
    notes: Option<Arc<File>>,
    renamed: bool,
}

/// What is there of an earlier download.
pub(crate) struct Earlier {
    pub(crate) version: Version,
    pub(crate) size: u64,
    pub(crate) sums: Vec<(Part, Sum)>,
}

impl Temporary {
    /// With a `tag` it is the file that an earlier download with that tag left, and what is good of it;
    /// unless that is to be forgotten. `None`: it is in use.
    pub(crate) fn create(
        target: &Path,
        tag: Option<u64>,
        anew: bool,
    ) -> Result<Option<(Self, Option<Earlier>)>, Error> {
        let refuse = |why: &dyn std::fmt::Display| {
            let target = target.display();
            Error::invalid(format!("local file `{target}` cannot be written: {why}"))
        };
        part::check_path(target)?;
        let last = target.to_string_lossy().chars().last();
        if last.is_some_and(std::path::is_separator) {
            return Err(refuse(&"it is a directory; give the name of a file"));
        }
        // What a link names is replaced, not the link.
        let target = fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
        let Some(name) = target.file_name() else {
            return Err(refuse(&"it is a directory; give the name of a file"));
        };
        let old = match fs::metadata(&target) {
            Ok(found) if found.is_dir() => {
                return Err(refuse(&"it is a directory; give the name of a file"));
            }
            Ok(found) if !found.is_file() => {
                return Err(refuse(&"it is not a file; give the name of a file"));
            }
            Ok(found) => Some(found.permissions()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(refuse(&error)),
        };
        let options = to_write(old.as_ref());
        let failed = |error: io::Error| refuse(&format!("{error}; check its directory"));
        let Some(tag) = tag else {
            let (file, path) = unnamed(&target, options).map_err(failed)?;
            let file = Arc::new(file);
            return Ok(Some((Self { file, path, target, notes: None, renamed: false }, None)));
        };
        let name = crc_fast::checksum(Crc::Crc64.algorithm(), name.as_encoded_bytes());
        let path = target.with_file_name(format!("{PREFIX}{:016x}.{PART}", name ^ tag));
        let Some(file) = locked(&path, &options, || ()).map_err(failed)? else { return Ok(None) };
        let notes = notes_of(&path);
        let text = fs::read_to_string(&notes).unwrap_or_default();
        let earlier = if anew { None } else { Earlier::read(&text, &file) };
        let notes = open_to_append(&notes).map_err(failed)?;
        let kept = earlier.as_ref().map_or_else(String::new, Earlier::write);
        notes.set_len(0).and_then(|()| (&notes).write_all(kept.as_bytes())).map_err(failed)?;
        if earlier.is_none() {
            file.set_len(0).map_err(failed)?;
        }
        let (file, notes) = (Arc::new(file), Some(Arc::new(notes)));
        Ok(Some((Self { file, path, target, notes, renamed: false }, earlier)))
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Notes what the ranges are of, if it is to be resumed.
    pub(crate) async fn note_version(&self, version: Version, size: u64) -> io::Result<()> {
        self.append(Earlier { version, size, sums: Vec::new() }.write()).await
    }

    /// Notes that a range is there.
    pub(crate) async fn note(&self, number: i32, sum: Option<Sum>) -> io::Result<()> {
        match sum {
            Some(sum) => self.append(line(number, sum)).await,
            None => Ok(()),
        }
    }

    async fn append(&self, text: String) -> io::Result<()> {
        let Some(notes) = self.notes.clone() else { return Ok(()) };
        part::blocking(move || (&*notes).write_all(text.as_bytes())).await
    }

    /// Makes it the target. When nobody waits for that any more it stays undone, unless it was on its way.
    pub(crate) async fn finish(self, length: u64) -> io::Result<()> {
        self.finish_when(length, File::sync_all).await
    }

    async fn finish_when(
        mut self,
        length: u64,
        sync: impl FnOnce(&File) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let turn = Turn::default();
        let begun = Turn(Arc::clone(&turn.0));
        let finishing = part::blocking(move || {
            if self.notes.is_some() {
                // What an earlier download left may have been of a longer object.
                self.file.set_len(length)?;
            }
            if self.file.metadata()?.len() != length {
                return Err(io::Error::other("its length is not the object's"));
            }
            // What could not be written counts as clean from then on (fsync(2), https://lwn.net/Articles/752063/): it
            // reads as it should while it is in memory, and the next sync has nothing to say. So nothing of
            // it is there for a download that resumes.
            sync(&self.file).inspect_err(|_| {
                let _ = self.file.set_len(0);
            })?;
            if !begun.take() {
                return Err(io::Error::other("nobody waits for it"));
            }
            #[cfg(unix)]
            permit(&self.file, &self.target)?;
            fs::rename(&self.path, &self.target)?;
            self.renamed = true;
            if self.notes.is_some() {
                let _ = fs::remove_file(notes_of(&self.path));
            }
            // The rename itself is on disk once the directory is; not every platform can do it.
            #[cfg(unix)]
            let _ = File::open(directory(&self.target)).and_then(|d| d.sync_all());
            Ok(())
        });
        let finished = finishing.await;
        match finished {
            Err(error) if OutOfTime::of(&error).is_some() => {
                let may_have_happened = !turn.take();
                Err(io::Error::other(OutOfTime { may_have_happened }))
            }
            finished => finished,
        }
    }
}

/// Either the rename begins or it is given up, whichever comes first.
#[derive(Default)]
struct Turn(Arc<AtomicBool>);

impl Turn {
    fn take(&self) -> bool {
        !self.0.swap(true, SeqCst)
    }
}

/// Nobody waits any more.
impl Drop for Turn {
    fn drop(&mut self) {
        self.take();
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.renamed && self.notes.is_none() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn notes_of(path: &Path) -> PathBuf {
    path.with_extension(NOTES)
}

#[cfg(unix)]
fn directory(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A file that is made with these is for nobody who may not open the target, which has these permissions if it
/// is there.
fn to_write(old: Option<&Permissions>) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).truncate(false);
    #[cfg(unix)]
    if let Some(old) = old {
        use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
        // Ours to open again, to resume it; whose group it will have is not known yet.
        options.mode((old.mode() & 0o707) | 0o600);
    }
    #[cfg(not(unix))]
    let _ = old;
    options
}

/// Whoever may open the target that is there may open what takes its name, and nobody else. A new target has the
/// permissions of any new file.
#[cfg(unix)]
fn permit(file: &File, target: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let Ok(old) = fs::metadata(target) else { return Ok(()) };
    // It is ours now, whosever it was: to be run in its owner's name is not handed on.
    let mode = |found: &fs::Metadata| found.permissions().mode() & 0o777;
    let new = file.metadata()?;
    // What a group may do is not for another one.
    let wanted = if old.gid() == new.gid() { mode(&old) } else { mode(&old) & !0o070 };
    match old.is_file() && wanted != mode(&new) {
        true => file.set_permissions(Permissions::from_mode(wanted)),
        false => Ok(()),
    }
}

/// A new file with a name of its own, locked.
fn unnamed(target: &Path, mut options: OpenOptions) -> io::Result<(File, PathBuf)> {
    options.create_new(true);
    loop {
        let path = target.with_file_name(format!("{PREFIX}{:016x}.{PART}", fastrand::u64(..)));
        let file = options.open(&path)?;
        // Whoever looks for files that nobody locks may have been quicker.
        let taken = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        if !taken && path.exists() {
            return Ok((file, path));
        }
    }
}

/// The file of this name, new or old, unless somebody has locked it.
fn locked(
    path: &Path,
    options: &OpenOptions,
    mut opened: impl FnMut(),
) -> io::Result<Option<File>> {
    let mut options = options.clone();
    options.create(true);
    loop {
        let file = options.open(path)?;
        opened();
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            return Ok(None);
        }
        // Whoever had it may have made it the target meanwhile, or removed it.
        if is_at(&file, path) {
            return Ok(Some(file));
        }
    }
}

/// Whether the file still has this name.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    let named = fs::metadata(path).map(identity);
    named.is_ok_and(|named| file.metadata().is_ok_and(|file| identity(file) == named))
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

fn open_to_append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

fn line(number: i32, sum: Sum) -> String {
    format!("{number} {} {:x}\n", sum.crc.name(), sum.value)
}

impl Earlier {
    const FIRST: &str = "mainstay-download-1";

    fn write(&self) -> String {
        let Version { total, etag } = &self.version;
        let etag = etag.as_deref().unwrap_or_default();
        let first = format!("{} {} {total} {etag}\n", Self::FIRST, self.size);
        self.sums.iter().fold(first, |text, (part, sum)| text + &line(part.number, *sum))
    }

    /// Only what the file bears out: a process that was killed may have noted less or, where the machine
    /// went down, more than is there.
    fn read(text: &str, file: &File) -> Option<Self> {
        let mut lines = text.lines();
        let mut first = lines.next()?.strip_prefix(Self::FIRST)?.trim_start().splitn(3, ' ');
        let size = first.next()?.parse().ok().filter(|size| *size > 0)?;
        let total = first.next()?.parse().ok()?;
        // Without one, nothing ties new ranges to the old.
        let etag = Some(first.next()?.to_owned()).filter(|etag| !etag.is_empty())?;
        let mut sums: Vec<(Part, Sum)> = Vec::new();
        for line in lines {
            let mut words = line.split(' ');
            let number = words.next().and_then(|word| word.parse::<i32>().ok());
            let crc = words.next().and_then(Crc::named);
            let value = words.next().and_then(|word| u64::from_str_radix(word, 16).ok());
            let (Some(number), Some(crc), Some(value)) = (number, crc, value) else { break };
            let mut parts = part::parts(0, total, size);
            let Some(part) = parts.find(|part| part.number == number) else { break };
            let sum = Sum { crc, value, length: part.length };
            let there = part::hash(file, part.start, part.length, crc);
            let again = sums.iter().any(|(known, _)| known.number == number);
            if !again && there.is_ok_and(|there| there == sum) {
                sums.push((part, sum));
            }
        }
        Some(Self { version: Version { total, etag: Some(etag) }, size, sums })
    }
}

/// Removes what downloads left in a directory and nobody is at work on; how many they were. Notes are removed
/// before what they are of, so that nobody who begins anew there loses his own; those that are left alone come from
/// a process that was killed in between, or after it gave the target its name.
pub(crate) fn remove_abandoned(directory: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is = |kind| name.starts_with(PREFIX) && path.extension().is_some_and(|e| e == kind);
        if is(NOTES) && !path.with_extension(PART).exists() {
            removed += usize::from(fs::remove_file(&path).is_ok());
        }
        // Looked at before it is opened: opening a pipe waits for a writer.
        if !is(PART) || !entry.file_type()?.is_file() {
            continue;
        }
        // Locked until it is gone. A file system without locks keeps all of them.
        let Ok(file) = File::open(&path) else { continue };
        if file.try_lock().is_ok() && is_at(&file, &path) {
            let _ = fs::remove_file(notes_of(&path));
            fs::remove_file(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_policy::Deadline;
    use std::{
        sync::mpsc,
        task::{Context, Waker},
        time::Duration,
    };

    /// A download of three bytes whose disk takes until it is told that it is done.
    fn slow(directory: &Path) -> (impl Future<Output = io::Result<()>>, mpsc::Sender<()>) {
        let target = directory.join("target");
        fs::write(&target, "old").unwrap();
        let (temporary, _) = Temporary::create(&target, None, false).unwrap().unwrap();
        (&**temporary.file()).write_all(b"new").unwrap();
        let (done, disk) = mpsc::channel();
        (
            temporary.finish_when(3, move |_| {
                let _ = disk.recv();
                Ok(())
            }),
            done,
        )
    }

    /// When its disk is done at last.
    fn end(directory: &Path, done: mpsc::Sender<()>) {
        drop(done);
        while fs::read_dir(directory).unwrap().count() > 1 {
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn a_slow_disk_does_not_hold_a_call_past_its_deadline_nor_change_the_target_after_it() {
        let directory = tempfile::tempdir().unwrap();
        let (finish, done) = slow(directory.path());
        let end_of_call = Deadline::within(Duration::from_millis(20)).scope(finish).await;
        let late = OutOfTime::of(&end_of_call.unwrap_err()).unwrap();
        assert!(!late.may_have_happened);
        end(directory.path(), done);
        assert_eq!(fs::read_to_string(directory.path().join("target")).unwrap(), "old");
    }

    #[tokio::test]
    async fn a_download_that_is_dropped_while_its_disk_works_leaves_the_target() {
        let directory = tempfile::tempdir().unwrap();
        let (finish, done) = slow(directory.path());
        let mut finish = Box::pin(finish);
        let mut context = Context::from_waker(Waker::noop());
        assert!(finish.as_mut().poll(&mut context).is_pending());
        drop(finish);
        end(directory.path(), done);
        assert_eq!(fs::read_to_string(directory.path().join("target")).unwrap(), "old");
    }

    /// One of them with a name like ours.
    #[cfg(unix)]
    #[tokio::test]
    async fn what_waits_in_a_directory_does_not_hold_its_clean_up() {
        let directory = tempfile::tempdir().unwrap();
        let pipes = ["pipe", ".mainstay-0123.part"].map(|name| directory.path().join(name));
        let made = std::process::Command::new("mkfifo").args(&pipes).status().unwrap();
        assert!(made.success());
        let removes = crate::remove_partial_downloads(directory.path());
        let removed = tokio::time::timeout(Duration::from_secs(5), removes).await;
        // Whoever reads them has a writer, so that the thread ends.
        let _writers = pipes.map(|pipe| to_write(None).open(pipe).unwrap());
        assert_eq!(removed.unwrap().unwrap(), 0);
    }

    /// The system takes for written what it failed to write, and a second sync goes well.
    #[tokio::test]
    async fn nothing_of_what_could_not_be_synced_is_there_for_the_next_download() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let begin = || Temporary::create(&target, Some(7), false).unwrap().unwrap();
        let (temporary, _) = begin();
        (&**temporary.file()).write_all(b"new").unwrap();
        let version = Version { total: 3, etag: Some("e".to_owned()) };
        temporary.note_version(version, 64).await.unwrap();
        let sum = part::hash(temporary.file(), 0, 3, Crc::Crc32).unwrap();
        temporary.note(1, Some(sum)).await.unwrap();
        drop(temporary);

        let (temporary, earlier) = begin();
        assert_eq!(earlier.unwrap().sums.len(), 1, "whole until then");
        let failed = temporary.finish_when(3, |_| Err(io::Error::other("EIO"))).await;
        assert_eq!(failed.unwrap_err().to_string(), "EIO");
        let (_, earlier) = begin();
        assert!(earlier.is_none_or(|earlier| earlier.sums.is_empty()));
        assert!(!target.exists());
    }

    #[test]
    fn notes_without_their_file_are_removed_and_those_of_a_download_at_work_stay() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        let (_at_work, _) = Temporary::create(&target, Some(7), false).unwrap().unwrap();
        let (left, _) = Temporary::create(&target, Some(8), false).unwrap().unwrap();
        let alone = notes_of(&left.path);
        fs::remove_file(&left.path).unwrap();
        drop(left);
        assert!(alone.exists());
        assert_eq!(remove_abandoned(directory.path()).unwrap(), 1);
        assert!(!alone.exists());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_that_became_the_target_before_it_was_locked_is_not_taken_for_the_next_download() {
        let directory = tempfile::tempdir().unwrap();
        let (path, target) = (directory.path().join("part"), directory.path().join("target"));
        fs::write(&path, "whole").unwrap();
        let file = locked(&path, &to_write(None), || {
            if !target.exists() {
                fs::rename(&path, &target).unwrap();
            }
        });
        file.unwrap().unwrap().write_all(b"another").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "whole");
        assert_eq!(fs::read_to_string(&path).unwrap(), "another");
    }

    #[tokio::test]
    async fn one_that_is_in_time_takes_the_targets_name() {
        let directory = tempfile::tempdir().unwrap();
        let (finish, done) = slow(directory.path());
        drop(done);
        Deadline::within(Duration::from_secs(60)).scope(finish).await.unwrap();
        assert_eq!(fs::read_to_string(directory.path().join("target")).unwrap(), "new");
        end(directory.path(), mpsc::channel().0);
    }
}
