//! The queue that work goes through, and what comes back from it.

use std::any::Any;
use std::sync::Arc;

use crate::{Checked, Error, Ran, RawBuffer, Result};

/// An ordered queue of work on one backend. On host backends the work is done when `submit` returns.
pub trait Stream: Send {
    /// Runs an op, after everything submitted before it.
    fn submit(&mut self, op: Checked<'_>) -> Result<Ran>;

    /// Waits until all submitted work is done, and reports what failed.
    fn synchronize(&mut self) -> Result<()>;

    /// Copies host bytes into a buffer, from byte `offset` on. The default serves host memory.
    fn upload(&mut self, src: &[u8], dst: &mut RawBuffer, offset: usize) -> Result<()> {
        let got = dst.bytes();
        match dst.as_host_mut().map(|d| d.get_mut(offset..offset.saturating_add(src.len()))) {
            Some(Some(part)) => {
                part.copy_from_slice(src);
                Ok(())
            }
            Some(None) => Err(too_short(offset, src.len(), got)),
            None => Err(foreign_memory("upload")),
        }
    }

    /// Copies bytes of a buffer, from byte `offset` on, to the host and waits for them. The default serves host memory.
    fn download(&mut self, src: &RawBuffer, offset: usize, dst: &mut [u8]) -> Result<()> {
        match src.as_host().map(|s| s.get(offset..offset.saturating_add(dst.len()))) {
            Some(Some(part)) => {
                dst.copy_from_slice(part);
                Ok(())
            }
            Some(None) => Err(too_short(offset, dst.len(), src.bytes())),
            None => Err(foreign_memory("download")),
        }
    }

    /// Whether it goes on working while its caller does something else, so that work which is submitted before results are
    /// asked for keeps it busy. Host streams are done when a call returns, and gain nothing.
    fn runs_ahead(&self) -> bool {
        false
    }

    /// Begins a copy to the host: of `len` bytes of a buffer, from byte `offset` on, as they are after everything submitted
    /// before. What is submitted later may write to the buffer. Several copies may be on their way.
    ///
    /// What failed on its data since the last download is reported when the copy is finished, or by a
    /// [`Stream::synchronize`] or [`Stream::download`] before that, once. A copy that is dropped leaves what failed to the
    /// next of these calls.
    ///
    /// For the few bytes that decide what happens next, an id that was drawn: a backend may do larger copies at once. The
    /// default does every copy at once.
    fn begin_download(&mut self, src: &RawBuffer, offset: usize, len: usize) -> Result<Download> {
        // Asked of the memory first: `len` may be any number.
        if offset.checked_add(len).is_none_or(|end| end > src.bytes()) {
            return Err(too_short(offset, len, src.bytes()));
        }
        let mut bytes = vec![0; len];
        self.download(src, offset, &mut bytes)?;
        Ok(Download::done(bytes))
    }

    /// Waits for a copy, and for nothing that was submitted after it. `dst` is as long as the copy.
    fn finish_download(&mut self, download: Download, dst: &mut [u8]) -> Result<()> {
        match download.into_bytes() {
            Ok(bytes) if bytes.len() == dst.len() => {
                dst.copy_from_slice(&bytes);
                Ok(())
            }
            Ok(bytes) => Err(Download::wrong_length(bytes.len(), dst.len())),
            Err(_) => Err(Download::foreign()),
        }
    }

    /// Waits for a copy that nobody wants any more, and drops what failed on its data since the copy before it: the work was
    /// done on the chance that it would be needed.
    fn discard_download(&mut self, download: Download) -> Result<()> {
        download.into_bytes().map(drop).map_err(|_| Download::foreign())
    }
}

/// A copy to the host that was begun; see [`Stream::begin_download`].
///
/// ```
/// use tersor_core::{Download, Checked, Ran, RawBuffer, Result, Stream};
///
/// /// Submits the next piece of work before it looks at what the last one gave.
/// fn next(stream: &mut dyn Stream, work: Checked<'_>, last: Download) -> Result<[u8; 4]> {
///     stream.submit(work)?;
///     let mut id = [0; 4];
///     stream.finish_download(last, &mut id)?;
///     Ok(id)
/// }
/// ```
#[derive(Debug)]
pub struct Download(Copy);

#[derive(Debug)]
enum Copy {
    Done(Vec<u8>),
    OnItsWay(Arc<dyn Any + Send + Sync>),
}

impl Download {
    /// One that is over.
    pub fn done(bytes: Vec<u8>) -> Self {
        Download(Copy::Done(bytes))
    }

    /// One that the stream knows by `ticket`, of which it keeps a clone: when there is no other, the copy was dropped.
    pub fn on_its_way(ticket: Arc<dyn Any + Send + Sync>) -> Self {
        Download(Copy::OnItsWay(ticket))
    }

    /// The bytes; its stream's ticket where it is on its way.
    pub fn into_bytes(self) -> std::result::Result<Vec<u8>, Arc<dyn Any + Send + Sync>> {
        match self.0 {
            Copy::Done(bytes) => Ok(bytes),
            Copy::OnItsWay(ticket) => Err(ticket),
        }
    }

    /// What a stream says of a copy that it did not begin.
    pub fn foreign() -> Error {
        let need = "begun by the stream that is to finish it, and not finished yet";
        Error::Parameter { what: "download", value: "another stream's".into(), need }
    }

    /// What a stream says where the target is not as long as the copy.
    pub fn wrong_length(copied: usize, target: usize) -> Error {
        let why = "the bytes of the copy that is finished".into();
        Error::Length { what: "target of a download", need: copied, got: target, why }
    }
}

fn too_short(offset: usize, len: usize, got: usize) -> Error {
    let why = format!("{len} bytes from byte {offset} on");
    Error::Length { what: "buffer", need: offset.saturating_add(len), got, why }
}

fn foreign_memory(what: &'static str) -> Error {
    Error::Memory {
        what,
        found: "device",
        backend: "host stream".into(),
        need: "host",
        remedy: "use a stream of the backend that made the buffer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream of host memory that cannot do a thing.
    struct Idle;

    impl Stream for Idle {
        fn submit(&mut self, _: Checked<'_>) -> Result<Ran> {
            Err(Error::Cancelled)
        }
        fn synchronize(&mut self) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_download_is_of_the_moment_when_it_was_begun() {
        let stream: &mut dyn Stream = &mut Idle;
        let mut buffer = RawBuffer::host(8);
        stream.upload(&[1, 2, 3, 4], &mut buffer, 2).unwrap();
        let first = stream.begin_download(&buffer, 2, 4).unwrap();
        stream.upload(&[5; 8], &mut buffer, 0).unwrap();
        let second = stream.begin_download(&buffer, 0, 8).unwrap();
        let (mut four, mut eight) = ([0; 4], [0; 8]);
        stream.finish_download(second, &mut eight).unwrap();
        stream.finish_download(first, &mut four).unwrap();
        assert_eq!((four, eight), ([1, 2, 3, 4], [5; 8]));
        assert!(!stream.runs_ahead());
    }

    #[test]
    fn downloads_that_cannot_be_are_errors() {
        let stream: &mut dyn Stream = &mut Idle;
        let buffer = RawBuffer::host(8);
        for (offset, len) in [(0, 9), (8, 1), (usize::MAX, 2), (1, usize::MAX)] {
            let e = stream.begin_download(&buffer, offset, len).unwrap_err();
            assert!(matches!(e, Error::Length { got: 8, .. }), "{e}");
        }
        let copy = stream.begin_download(&buffer, 0, 8).unwrap();
        let e = stream.finish_download(copy, &mut [0; 7]).unwrap_err();
        assert!(matches!(e, Error::Length { need: 8, got: 7, .. }), "{e}");
        for finish in [true, false] {
            let foreign = Download::on_its_way(Arc::new(()));
            let done = if finish { stream.finish_download(foreign, &mut []) } else { stream.discard_download(foreign) };
            assert!(matches!(done, Err(Error::Parameter { what: "download", .. })));
        }
        let copy = stream.begin_download(&buffer, 0, 8).unwrap();
        stream.discard_download(copy).unwrap();
    }
}
