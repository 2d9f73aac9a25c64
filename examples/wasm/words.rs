// Counts the words of its standard input, or of the files that its arguments name: a WASI command for Sandbox("wasm").
use std::io::Read;

fn main() {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let mut text = String::new();
    if paths.is_empty() {
        if std::io::stdin().read_to_string(&mut text).is_err() {
            std::process::exit(2);
        }
    }
    for path in &paths {
        match std::fs::read_to_string(path) {
            Ok(found) => text.push_str(&found),
            Err(error) => {
                eprintln!("{}: {}", path, error);
                std::process::exit(1);
            }
        }
    }
    println!("{} words", text.split_whitespace().count());
}
