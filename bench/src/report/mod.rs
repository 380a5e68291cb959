//! What a scenario found: rows for people and for programs.

pub mod compare;
pub mod html;
mod plot;
mod plots;
pub mod ratios;
pub mod table;
pub mod targets;

use crate::cell::Source;
use crate::machine::Machine;
use crate::payload::Payload;
use crate::stats::Summary;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;

/// The result of one scenario. Its JSON form is the same for all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub scenario: String,
    pub machine: Machine,
    pub cells: Vec<Row>,
}

/// One cell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Payload>,
    #[serde(flatten)]
    pub summary: Option<Summary>,
    /// Further figures, by name with the unit in it.
    #[serde(flatten)]
    pub values: Map<String, Value>,
    /// All samples in nanoseconds, in the order in which they were taken: for intervals and plots, not for files.
    #[serde(skip)]
    pub samples_ns: Vec<u64>,
}

impl Row {
    /// A row without a distribution.
    pub fn of_values<'a>(name: &str, values: impl IntoIterator<Item = (&'a str, Value)>) -> Self {
        let values = values.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Self { name: name.to_owned(), values, ..Self::default() }
    }

    /// A row of a distribution, without a name.
    pub fn of_samples(samples_ns: Vec<u64>) -> Self {
        Self { summary: Summary::of(&samples_ns), samples_ns, ..Self::default() }
    }

    /// Says how many containers came from where; nothing if there were none of ours.
    pub fn put_sources(&mut self, sources: &BTreeMap<Source, u64>) {
        if !sources.is_empty() {
            for source in [Source::Stock, Source::Cast, Source::Libcontainer] {
                self.values.insert(source.name().into(), sources.get(&source).copied().unwrap_or(0).into());
            }
        }
    }

    /// A figure by its name, one of the distribution's too.
    pub fn figure(&self, key: &str) -> Option<f64> {
        let of_summary = |summary: Summary| match key {
            "p50_us" => Some(summary.p50_us),
            "p90_us" => Some(summary.p90_us),
            "p99_us" => Some(summary.p99_us),
            "max_us" => Some(summary.max_us),
            _ => None,
        };
        self.number(key).or_else(|| self.summary.and_then(of_summary))
    }

    /// A figure besides the distribution, by its name.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.values.get(key)?.as_f64()
    }
}

impl Report {
    /// The row of a cell.
    pub fn row(&self, name: &str, payload: Option<Payload>) -> Option<&Row> {
        self.cells.iter().find(|row| row.name == name && row.payload == payload)
    }

    /// Writes it into a file, as JSON.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, self.to_json()).with_context(|| path.display().to_string())
    }

    /// As it goes into a file.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report is always JSON");
        text.push('\n');
        text
    }
}

/// Rounded to `digits` decimals, for people and for files that are compared.
pub fn rounded(value: f64, digits: i32) -> Value {
    let factor = 10f64.powi(digits);
    Value::from((value * factor).round() / factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_form_is_the_one_that_is_promised() {
        let report = Report {
            scenario: "start".into(),
            machine: Machine { cpus: 2, kernel: "6.18".into(), ..Machine::default() },
            cells: vec![
                Row {
                    name: "agent-stock".into(),
                    payload: Some(Payload::Tiny),
                    summary: Summary::of(&[1500, 2500, 3500]),
                    values: Map::from_iter([("failed".to_owned(), Value::from(0))]),
                    ..Row::default()
                },
                Row::of_values("paused-slope", [("kib", rounded(345.678, 1))]),
            ],
        };
        let golden = r#"{
  "scenario": "start",
  "machine": {
    "cpus": 2,
    "cpu_model": "",
    "memory_mib": 0,
    "kernel": "6.18",
    "cgroups": "",
    "disk": "",
    "load_before": 0.0,
    "load_after": 0.0,
    "steal_percent": 0.0,
    "version": "",
    "warnings": []
  },
  "cells": [
    {
      "name": "agent-stock",
      "payload": "tiny",
      "n": 3,
      "p50_us": 2.5,
      "p90_us": 3.5,
      "p99_us": 3.5,
      "max_us": 3.5,
      "failed": 0
    },
    {
      "name": "paused-slope",
      "kib": 345.7
    }
  ]
}
"#;
        assert_eq!(report.to_json(), golden);
        assert_eq!(serde_json::from_str::<Report>(golden).unwrap(), report);
    }
}
