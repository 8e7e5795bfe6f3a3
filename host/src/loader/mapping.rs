//! Where in memory a file is mapped.

use std::io;
use std::ops::Range;
use std::path::Path;

/// The addresses at which a file is mapped, from the lowest to the highest. `None`: it is not mapped.
///
/// # Errors
/// If the system does not say.
pub fn of(file: &Path) -> io::Result<Option<Range<usize>>> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let name = file.to_string_lossy();
    let mut range: Option<Range<usize>> = None;
    for line in maps.lines().filter(|line| line.contains(&*name)) {
        let unknown = || io::Error::other(format!("a line of another form: {line}"));
        let ends = line.split_once(' ').and_then(|(ends, _)| ends.split_once('-'));
        let number = |text| usize::from_str_radix(text, 16).map_err(|_| unknown());
        let (start, end) = ends.ok_or_else(unknown)?;
        let (start, end) = (number(start)?, number(end)?);
        let known = range.get_or_insert(start..end);
        *known = known.start.min(start)..known.end.max(end);
    }
    Ok(range)
}
