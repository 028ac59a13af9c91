//! One case list for every Tersor backend, judged by an independent oracle.
