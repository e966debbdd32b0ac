//! Publishing durably, in one place.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use crate::folder::{Folder, OsFolder};

/// Gives the file at `path` the content `bytes`, with mode 0600.
///
/// After a crash at any instant it has its old content (or is absent still) or
/// the new one. A temporary file `.NAME.new` may be left beside it by a crash;
/// nothing reads it, and the next replacement takes it up. So whoever owns the
/// file sees to it that one thread at a time replaces it: two at once could
/// publish a mixture.
///
/// # Errors
/// What the operating system says. The file may have either content then.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (folder, name) = split(path)?;
    replace_in(&OsFolder::open(folder)?, name, bytes)
}

/// [`replace`] of the file `name` of `folder`.
///
/// # Errors
/// As [`replace`].
pub fn replace_in(folder: &dyn Folder, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (parent, file_name) = name.rsplit_once('/').unwrap_or(("", name));
    let mut temporary = format!(".{file_name}.new");
    if !parent.is_empty() {
        temporary = format!("{parent}/{temporary}");
    }
    let written = folder.create(&temporary).and_then(|file| {
        file.write_at(0, bytes)?;
        file.sync()?;
        folder.rename(&temporary, name)
    });
    if let Err(error) = written {
        // Only tidiness: the error that matters is the first one.
        let _ = folder.remove(&temporary);
        return Err(error);
    }
    folder.sync(parent)
}

/// Makes the folder `path` and what is missing above it, with mode 0700, durably. It may exist.
///
/// # Errors
/// What the operating system says; `AlreadyExists` or `NotADirectory` if a file is in the way.
pub fn create_folder(path: &Path) -> io::Result<()> {
    let parent = parent(path);
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {
            // Perhaps made just before a crash and not synced yet. A folder above that we may
            // not even read was not made by us.
            return match sync_folder(parent) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
                other => other,
            };
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !parent.exists() => {
            create_folder(parent)?;
            DirBuilder::new().mode(0o700).create(path)?;
        }
        Err(error) => return Err(error),
    }
    sync_folder(parent)
}

/// Removes the file at `path`; it stays away after a crash. It may be absent.
///
/// # Errors
/// What the operating system says.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => match sync_folder(parent(path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        },
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => Path::new("/"),
    }
}

fn split(path: &Path) -> io::Result<(&Path, &str)> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} does not end in a file name in UTF-8", path.display()),
            )
        })?;
    Ok((parent(path), name))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_replaced_file_has_the_new_content_mode_0600_and_nothing_beside_it() {
        let scratch = tempfile::tempdir().expect("scratch");
        let path = scratch.path().join("vm.toml");
        replace(&path, b"old, and longer").expect("first");
        replace(&path, b"new").expect("second");
        assert_eq!(fs::read(&path).expect("there"), b"new");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(scratch.path()).expect("a folder").count(), 1);
    }

    #[test]
    fn replacing_in_a_folder_that_is_absent_fails_and_makes_nothing() {
        let scratch = tempfile::tempdir().expect("scratch");
        let error = replace(&scratch.path().join("absent/file"), b"x").expect_err("absent");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!scratch.path().join("absent").exists());
        assert!(replace(Path::new("/"), b"x").is_err());
    }

    #[test]
    fn folders_are_made_with_all_that_is_above_them_and_are_private() {
        let scratch = tempfile::tempdir().expect("scratch");
        let path = scratch.path().join("a/b/c");
        create_folder(&path).expect("made");
        create_folder(&path).expect("there already");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::write(path.join("file"), b"").expect("written");
        assert!(create_folder(&path.join("file")).is_err());
        assert!(create_folder(&path.join("file/below")).is_err());
    }

    #[test]
    fn removing_what_is_absent_is_no_error() {
        let scratch = tempfile::tempdir().expect("scratch");
        let path = scratch.path().join("file");
        fs::write(&path, b"").expect("written");
        remove(&path).expect("removed");
        assert!(!path.exists());
        remove(&path).expect("absent");
        remove(&scratch.path().join("absent/file")).expect("absent with its folder");
    }
}
