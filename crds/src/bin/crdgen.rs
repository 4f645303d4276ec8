//! Prints both CustomResourceDefinitions, or with `--write ROOT` writes every generated file below that root.

use std::error::Error;
use std::path::Path;

use penstock_crds::reference::generated;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        None => {
            for (_, content) in generated()?
                .into_iter()
                .filter(|(path, _)| path.ends_with(".yaml"))
            {
                print!("---\n{content}");
            }
        }
        Some("--write") => {
            let root = arguments
                .next()
                .ok_or("--write needs the root of the repository")?;
            for (path, content) in generated()? {
                let path = Path::new(&root).join(path);
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                std::fs::write(&path, content)?;
            }
        }
        Some(other) => {
            return Err(
                format!("unknown argument {other}; use no argument, or --write ROOT").into(),
            );
        }
    }
    Ok(())
}
