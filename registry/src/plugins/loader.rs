//! Opening the library: the one place of this crate with `unsafe` code.
#![allow(unsafe_code, reason = "loading native code")]

use std::path::Path;

use tersor_abi::host::Plugin;
use tersor_abi::raw::TersorPluginV1;

use super::trust::Opened;
use super::{PluginError, Stage};

const SYMBOL: &[u8] = b"tersor_plugin_v1\0";

/// Opens a library that was vetted and reads its tables. It is never unloaded.
pub(super) fn load(manifest: &Path, library: &Opened) -> Result<Plugin, PluginError> {
    let fail = |stage, reason| PluginError { manifest: manifest.to_owned(), stage, reason };
    let opened = open(library).map_err(|e| fail(Stage::Open, e))?;
    // SAFETY: the symbol's name carries the version of its type; that the library keeps it is what its manifest says.
    let symbol: TersorPluginV1 = match unsafe { opened.get::<TersorPluginV1>(SYMBOL) } {
        Ok(symbol) => *symbol,
        Err(e) => return Err(fail(Stage::Open, format!("it exports no tersor_plugin_v1: {e}"))),
    };
    // Its tables, its names and threads that it may have started outlive any handle.
    std::mem::forget(opened);
    // SAFETY: the library stays loaded, and the contract is what the manifest promises and the probe has tried.
    unsafe { Plugin::connect(symbol) }.map_err(|e| fail(Stage::Tables, e.to_string()))
}

/// The file that is open is the one that was hashed, so it is loaded through its descriptor: nothing can be put in its
/// place in between. (Its own `$ORIGIN` is therefore not the directory of its path.) The descriptor stays open: the
/// dynamic loader knows libraries by name, and a number used twice would name the first library again.
#[cfg(target_os = "linux")]
fn open(library: &Opened) -> Result<libloading::os::unix::Library, String> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
    use std::os::fd::IntoRawFd;
    let file = library.file.try_clone().map_err(|e| format!("{}: {e}", library.path.display()))?;
    let path = format!("/proc/self/fd/{}", file.into_raw_fd());
    // SAFETY: initializers of the library run; that is what loading a plugin means, and why it is vetted first.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(|e| format!("{}: {e}", library.path.display()))
}

/// Elsewhere there is no way to load what is open: refused, rather than loaded by a name that could have changed.
#[cfg(not(target_os = "linux"))]
fn open(library: &Opened) -> Result<libloading::Library, String> {
    Err(format!("{}: plugins are loaded on Linux only so far", library.path.display()))
}
