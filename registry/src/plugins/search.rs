//! Where manifests are looked for. Never in the current directory, never by a bare name.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::{PluginError, Stage};
use crate::config::Config;

/// The system's directories.
pub const SYSTEM: [&str; 2] = ["/usr/local/lib/tersor/plugins", "/usr/lib/tersor/plugins"];

/// A place that is searched, and who named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// A manifest, or a directory that holds manifests.
    pub path: PathBuf,
    /// Who named it.
    pub by: String,
    /// Whether it has to be there.
    required: bool,
}

/// The places in order: configuration (its flags come first there), `TERSOR_PLUGIN_PATH`, the user's data directory, the
/// system's. `variable` reads the environment.
pub fn places(config: &Config, variable: impl Fn(&str) -> Option<OsString>) -> Vec<Place> {
    let origin = config.origin("plugins.paths").map(|o| format!(" ({o})")).unwrap_or_default();
    let named = |path: &PathBuf| Place { path: path.clone(), by: format!("plugins.paths{origin}"), required: true };
    let mut places: Vec<_> = config.plugins.paths.iter().map(named).collect();
    if let Some(paths) = variable("TERSOR_PLUGIN_PATH") {
        let by = || "TERSOR_PLUGIN_PATH".to_owned();
        let given = std::env::split_paths(&paths).filter(|p| !p.as_os_str().is_empty());
        places.extend(given.map(|path| Place { path, by: by(), required: true }));
    }
    let data = variable("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || Some(PathBuf::from(variable("HOME")?).join(".local/share"));
    if let Some(path) = data.or_else(home).filter(|p| p.is_absolute()) {
        let path = path.join("tersor/plugins");
        places.push(Place { path, by: "the user's data directory".into(), required: false });
    }
    let system = |path| Place { path: PathBuf::from(path), by: "the system's directory".into(), required: false };
    places.extend(SYSTEM.map(system));
    places
}

/// The manifests of these places, in order, each once; and what is wrong with the places.
pub fn manifests(places: &[Place]) -> (Vec<PathBuf>, Vec<PluginError>) {
    let (mut found, mut errors, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    for place in places {
        match in_place(place) {
            Ok(files) => found.extend(files.into_iter().filter(|file| seen.insert(file.clone()))),
            Err(reason) => errors.push(PluginError {
                manifest: place.path.clone(),
                stage: Stage::Search,
                reason: format!("{reason} (named by {})", place.by),
            }),
        }
    }
    (found, errors)
}

fn in_place(place: &Place) -> Result<Vec<PathBuf>, String> {
    if !place.path.is_absolute() {
        return Err("it is not absolute, and the current directory is not searched".into());
    }
    // Links are followed once, here, so that everything after speaks of one file.
    let path = match place.path.canonicalize() {
        Ok(path) => path,
        Err(_) if !place.required => return Ok(Vec::new()),
        Err(e) => return Err(format!("it cannot be opened: {e}")),
    };
    if !path.is_dir() {
        return Ok(vec![path]);
    }
    let listed = std::fs::read_dir(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let mut files: Vec<_> = listed
        .map_err(|e| format!("it cannot be listed: {e}"))?
        .into_iter()
        .filter_map(|entry| entry.path().canonicalize().ok())
        .filter(|file| file.extension().is_some_and(|e| e == "toml") && is_manifest(file))
        .collect();
    files.sort();
    Ok(files)
}

/// A directory may hold other TOML files; a manifest says that it is one.
fn is_manifest(file: &Path) -> bool {
    std::fs::read_to_string(file).is_ok_and(|text| text.contains("manifest_version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_configuration_environment_user_system() {
        let config = Config::from_toml_str("[plugins]\npaths = ['/etc/acme']").unwrap();
        let variable = |name: &str| match name {
            "TERSOR_PLUGIN_PATH" => Some("/opt/a:rel/b".into()),
            "HOME" => Some("/home/me".into()),
            _ => None,
        };
        let places = places(&config, variable);
        let paths: Vec<_> = places.iter().map(|p| p.path.to_str().unwrap()).collect();
        let (user, [local, system]) = ("/home/me/.local/share/tersor/plugins", SYSTEM);
        assert_eq!(paths, ["/etc/acme", "/opt/a", "rel/b", user, local, system]);
        assert!(places[0].by.contains("<text>:2:1"), "{}", places[0].by);
    }

    #[test]
    fn manifests_of_a_directory_are_found_once_and_relative_places_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.toml", "a.toml"] {
            std::fs::write(dir.path().join(name), "manifest_version = 1").unwrap();
        }
        std::fs::write(dir.path().join("Cargo.toml"), "[package]").unwrap();
        let place = |path: &Path, required| Place { path: path.into(), by: "a test".into(), required };
        let a = dir.path().join("a.toml");
        let (found, errors) = manifests(&[
            place(dir.path(), true),
            place(&a, true),
            place(Path::new("rel"), true),
            place(Path::new("/nowhere/at/all"), true),
            place(Path::new("/nowhere/either"), false),
        ]);
        let names: Vec<_> = found.iter().map(|f| f.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.toml", "b.toml"]);
        assert!(errors[0].to_string().contains("not absolute") && errors[1].to_string().contains("/nowhere/at/all"));
        assert_eq!(errors.len(), 2);
    }
}
