//! GET /v1/workflows/{id}/log: what the newest run of the setup script of a workflow has written, in pages.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use turnaround_workflows::store::WorkflowId;

use super::app::App;
use super::extract::{Path, Query};
use super::problem::Problem;
use crate::wire::LogView;

/// A page. A log may have a gigabyte: neither this program nor the one that asks holds more of it at a time.
const PAGE_BYTES_MAX: u64 = 256 * 1024;
/// Runs that are looked through: as many as a site of a thousand nodes has in a year.
const RUNS_MAX: usize = 100_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    /// The first byte, from 0.
    from: Option<u64>,
    /// Of this run, and not of the newest one.
    run: Option<String>,
    /// Whole lines only, while the run goes on: what it writes later may belong to the last one.
    #[serde(default)]
    whole_lines: bool,
}

pub(super) async fn log(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Query(asked): Query<Parameters>,
) -> Result<Json<LogView>, Problem> {
    let id: WorkflowId = id.parse()?;
    let folder = app.config.scripts_dir();
    let page = tokio::task::spawn_blocking(move || {
        let runs = runs(&folder, &id)?;
        let chosen = match asked.run {
            Some(run) => runs.into_iter().find(|(_, known)| *known == run),
            None => runs.into_iter().max(),
        };
        let Some((_, run)) = chosen else { return Ok(Err(id)) };
        let folder = folder.join(&run);
        // Before its log: what is read then is all of it.
        let over = folder.join("exit").try_exists()?;
        let Page { next, end, text } = page(&folder.join("log"), asked.from.unwrap_or(0), asked.whole_lines && !over)?;
        Ok::<_, io::Error>(Ok(LogView { run, next, end, over, text }))
    });
    match page.await {
        Ok(Ok(Ok(view))) => Ok(Json(view)),
        Ok(Ok(Err(id))) => Err(Problem::no_log(id.as_str())),
        Ok(Err(error)) => Err(Problem::internal(&error)),
        Err(error) => Err(Problem::internal(&error)),
    }
}

/// The runs of this workflow, with what they are ordered by: `<workflow>.<step>.<fence>`.
fn runs(folder: &FilePath, id: &WorkflowId) -> io::Result<Vec<(u64, String)>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut runs = Vec::new();
    for entry in entries.take(RUNS_MAX) {
        let Ok(name) = entry?.file_name().into_string() else { continue };
        let mut parts = name.rsplitn(3, '.');
        let (fence, _step, of) = (parts.next(), parts.next(), parts.next());
        if of == Some(id.as_str())
            && let Some(fence) = fence.and_then(|fence| fence.parse().ok())
        {
            runs.push((fence, name));
        }
    }
    Ok(runs)
}

#[derive(Debug, PartialEq, Eq)]
struct Page {
    /// Where the next page begins, if this is not the end.
    next: Option<u64>,
    end: u64,
    text: String,
}

/// What stands from byte `from` on, up to the end of a line where there is one; where it is the end of the log, only with `whole_lines`.
fn page(log: &PathBuf, from: u64, whole_lines: bool) -> io::Result<Page> {
    let mut file = match std::fs::File::open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Page { next: None, end: from, text: String::new() }),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(PAGE_BYTES_MAX).read_to_end(&mut bytes)?;
    let full = bytes.len() as u64 == PAGE_BYTES_MAX;
    match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(end) if full || whole_lines => bytes.truncate(end + 1),
        None if whole_lines && !full => bytes.clear(),
        Some(_) | None => {}
    }
    let end = from + bytes.len() as u64;
    Ok(Page { next: (full && end < length).then_some(end), end, text: String::from_utf8_lossy(&bytes).into_owned() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_read_in_pages_that_end_with_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let whole: String = (0..60_000).map(|n| format!("line {n} ä\n")).collect();
        std::fs::write(&path, &whole).unwrap();
        let (mut from, mut read, mut pages) = (Some(0), String::new(), 0);
        while let Some(at) = from {
            let Page { next, text, .. } = page(&path, at, pages % 2 == 0).unwrap();
            assert!(text.ends_with('\n') && text.len() as u64 <= PAGE_BYTES_MAX);
            read += &text;
            (from, pages) = (next, pages + 1);
        }
        assert_eq!(read, whole);
        assert_eq!(pages, 4);
        assert_eq!(page(&folder.path().join("none"), 7, false).unwrap(), Page { next: None, end: 7, text: String::new() });
    }

    #[test]
    fn a_line_that_is_being_written_is_left_for_later_where_that_is_wanted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let read = |from, whole_lines| page(&path, from, whole_lines).map(|page| (page.end, page.text)).unwrap();
        std::fs::write(&path, "ok\nPassw").unwrap();
        assert_eq!((read(0, true), read(3, true)), ((3, "ok\n".to_owned()), (3, String::new())));
        assert_eq!(read(0, false), (8, "ok\nPassw".to_owned()));
    }

    #[test]
    fn only_runs_of_this_workflow_are_found_and_the_newest_is_that_of_the_highest_fence() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["r-1.gpu-01.deploy-openstack.9", "r-1.gpu-01.deploy-openstack.10", "r-1.gpu-02.deploy-openstack.99", "strange"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let of = |id: &str| runs(folder.path(), &id.parse().unwrap()).unwrap();
        assert_eq!(of("r-1.gpu-01").into_iter().max().unwrap().1, "r-1.gpu-01.deploy-openstack.10");
        assert_eq!(of("r-1.gpu-01").len(), 2);
        assert_eq!(of("r-1"), []);
        assert_eq!(runs(&folder.path().join("none"), &"r-1".parse().unwrap()).unwrap(), []);
    }
}
