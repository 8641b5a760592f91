//! `cargo xtask floors`: dependencies between the workspace's crates point down only.
//!
//! A crate states its floor as `[package.metadata] floor`. A normal or build dependency has to lie on a lower floor;
//! dev-dependencies are free. The crates that are to work without libtorch may not reach torch-sys in any way.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

use crate::project::Project;

/// The floor of everything that only consumes the libraries.
const TOP: u64 = 7;
/// Crates above floor 1 that still have to do without libtorch.
const LIGHT: [&str; 4] = ["collectives", "explain", "scoring", "stage-kit"];
const NATIVE: &str = "torch-sys";

/// What the rule needs to know of one package.
#[derive(Debug)]
struct Package {
    floor: Option<u64>,
    /// Whether it is a library in `crates/`; all others sit on the top floor.
    is_library: bool,
    /// Workspace packages it depends on when it is built, not only when it is tested.
    needs: Vec<String>,
}

type Graph = BTreeMap<String, Package>;

/// Checks the workspace and says in one line what was checked.
pub(crate) fn run(project: &Project) -> Result<String> {
    let metadata = MetadataCommand::new()
        .manifest_path(project.root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cannot read the workspace's metadata")?;
    let graph = graph(&metadata);
    let problems = problems(&graph);
    if !problems.is_empty() {
        bail!("the floors do not hold:\n  {}", problems.join("\n  "));
    }
    let light = light(&metadata, &graph);
    if let Some(path) = path_to_native(project, &light)? {
        bail!("these have to do without libtorch ({}), but:\n{path}", light.join(", "));
    }
    let edges: usize = graph.values().map(|package| package.needs.len()).sum();
    Ok(format!("    {} packages, {edges} edges down, {} packages free of {NATIVE}", graph.len(), light.len()))
}

fn graph(metadata: &Metadata) -> Graph {
    let crates = metadata.workspace_root.join("crates");
    let packages = metadata.workspace_packages().into_iter().map(|package| {
        let built = package.dependencies.iter().filter(|needed| needed.kind != DependencyKind::Development);
        let needs = built.filter(|needed| needed.path.is_some()).map(|needed| needed.name.clone()).collect();
        let floor = package.metadata["floor"].as_u64();
        let is_library = package.manifest_path.starts_with(&crates);
        (package.name.to_string(), Package { floor, is_library, needs })
    });
    packages.collect()
}

/// Every breach of the rule, in words.
fn problems(graph: &Graph) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, package) in graph {
        let Some(floor) = package.floor else {
            problems.push(format!("{name} states no floor: add `floor` under [package.metadata]"));
            continue;
        };
        if package.is_library && floor >= TOP {
            problems.push(format!("{name} is a library and states floor {floor}: libraries lie below {TOP}"));
        }
        if !package.is_library && floor != TOP {
            problems
                .push(format!("{name} is no library and states floor {floor}: it belongs on floor {TOP}"));
        }
        for needed in &package.needs {
            let below = graph.get(needed).and_then(|package| package.floor);
            match below {
                Some(below) if below > floor => problems.push(format!(
                    "{name} (floor {floor}) depends upward on {needed} (floor {below}): move the shared part down"
                )),
                Some(below) if below == floor => problems.push(format!(
                    "{name} and {needed} are both on floor {floor}: sideways dependencies are not allowed"
                )),
                _ => {}
            }
        }
    }
    problems
}

/// The packages that have to build and pass their tests without libtorch.
fn light(metadata: &Metadata, graph: &Graph) -> Vec<String> {
    let default: Vec<_> =
        metadata.workspace_default_packages().iter().map(|package| package.name.to_string()).collect();
    let is_light = |name: &String| {
        let low = graph[name].floor.is_some_and(|floor| floor <= 1);
        low || LIGHT.contains(&name.as_str()) || default.contains(name)
    };
    graph.keys().filter(|name| is_light(name)).cloned().collect()
}

/// How the packages, with their default features, reach torch-sys; none if they do not.
fn path_to_native(project: &Project, packages: &[String]) -> Result<Option<String>> {
    let tree = |extra: &[&str]| -> Result<String> {
        let mut cargo = project.cargo(&["tree", "--quiet", "--edges", "normal,build,dev"]);
        for package in packages {
            cargo.args(["--package", package]);
        }
        let output = cargo.args(extra).output().context("cannot start `cargo tree`")?;
        ensure!(
            output.status.success(),
            "`cargo tree` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let names = tree(&["--prefix", "none", "--format", "{p}"])?;
    if !names.lines().any(|line| line.split(' ').next() == Some(NATIVE)) {
        return Ok(None);
    }
    tree(&["--invert", NATIVE]).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph_of(packages: &[(&str, u64, &[&str])]) -> Graph {
        let packages = packages.iter().map(|&(name, floor, needs)| {
            let needs = needs.iter().map(|&name| name.to_owned()).collect();
            (name.to_owned(), Package { floor: Some(floor), is_library: floor < TOP, needs })
        });
        packages.collect()
    }

    #[test]
    fn downward_edges_pass() {
        let graph = graph_of(&[("types", 0, &[]), ("core", 1, &["types"]), ("bin", 7, &["core", "types"])]);
        assert!(problems(&graph).is_empty());
    }

    #[test]
    fn upward_and_sideways_edges_fail_and_are_named() {
        let graph = graph_of(&[("types", 0, &["core"]), ("core", 1, &["cache"]), ("cache", 1, &[])]);
        let problems = problems(&graph);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("core and cache are both on floor 1"), "{problems:?}");
        assert!(problems[1].contains("types (floor 0) depends upward on core (floor 1)"), "{problems:?}");
    }

    #[test]
    fn binaries_do_not_share_code_sideways() {
        let graph = graph_of(&[("sae-train", 7, &["sae-cache"]), ("sae-cache", 7, &[])]);
        assert_eq!(problems(&graph).len(), 1);
    }

    #[test]
    fn a_floor_has_to_be_stated_and_to_fit_the_folder() {
        let mut graph = graph_of(&[("core", 1, &[]), ("tool", 7, &[])]);
        graph.get_mut("core").unwrap().floor = None;
        graph.get_mut("tool").unwrap().floor = Some(3);
        let problems = problems(&graph);
        assert!(problems[0].contains("core states no floor"), "{problems:?}");
        assert!(problems[1].contains("belongs on floor 7"), "{problems:?}");
    }

    #[test]
    fn this_workspace_holds_and_a_torch_crate_is_noticed() {
        let project = Project::find().unwrap();
        run(&project).unwrap();
        let path = path_to_native(&project, &["sae-types".to_owned(), "torch-nn".to_owned()]).unwrap();
        assert!(path.is_some_and(|path| path.contains("torch-nn")));
    }
}
