//! Where the program is that plans.

use std::path::PathBuf;

/// The program that plans: `PENSTOCK_PLANNER`, else the one that was built beside this test.
pub fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("PENSTOCK_PLANNER") {
        return program.into();
    }
    let test = std::env::current_exe().unwrap();
    let target = test.ancestors().nth(3).unwrap();
    let built = ["release", "debug"].map(|profile| target.join(profile).join("penstock"));
    built.into_iter().find(|p| p.is_file()).unwrap_or_else(|| {
        panic!(
            "no planner: build the program penstock into {}, or say where it is by PENSTOCK_PLANNER",
            target.display()
        )
    })
}
