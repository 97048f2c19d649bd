//! What was measured: curves over one thing that grows.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// How a curve is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unit {
    /// Drawn as milliseconds.
    Milliseconds,
    /// Drawn as MiB.
    MiB,
}

impl Unit {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::MiB => "MiB",
        }
    }
}

/// One quantity.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) points: Vec<(f64, f64)>,
}

/// All that was measured over one thing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Axis {
    /// As on the command line.
    pub(crate) name: String,
    /// What is counted.
    pub(crate) label: String,
    /// How it was measured.
    pub(crate) how: String,
    pub(crate) curves: Vec<Curve>,
}

impl Axis {
    pub(crate) fn new(name: &str, label: &str, how: &str) -> Self {
        Self { name: name.to_owned(), label: label.to_owned(), how: how.to_owned(), curves: Vec::new() }
    }

    /// Adds a point to a curve.
    pub(crate) fn add(&mut self, name: &str, unit: Unit, x: u64, y: f64) {
        let index = self.curves.iter().position(|curve| curve.name == name).unwrap_or_else(|| {
            self.curves.push(Curve { name: name.to_owned(), unit, points: Vec::new() });
            self.curves.len() - 1
        });
        self.curves[index].points.push((x as f64, y));
    }
}

/// All axes, and where they were measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) machine: String,
    pub(crate) axes: Vec<Axis>,
}

impl Measured {
    /// What was kept; nothing if nothing was.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        match fs::read(file) {
            Ok(text) => {
                serde_json::from_slice(&text).with_context(|| format!("cannot read {}", file.display()))
            }
            Err(_) => Ok(Self::default()),
        }
    }

    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(file, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// In place of what was there of the same name.
    pub(crate) fn put(&mut self, axis: Axis) {
        self.axes.retain(|other| other.name != axis.name);
        self.axes.push(axis);
        self.axes.sort_by_key(|axis| crate::options::AXES.iter().position(|name| *name == axis.name));
    }
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
