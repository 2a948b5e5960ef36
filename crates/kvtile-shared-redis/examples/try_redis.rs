//! Opens a Redis or Valkey server as a shared store and prints what it states, and its warnings:
//! `cargo run -p kvtile-shared-redis --example try_redis -- redis://host:6379/0`.

use std::{env, error::Error, time::Duration};

use kvtile_shared::store::{Deadline, SharedStore, ValueName};
use kvtile_shared_redis::{RedisStore, RedisUrl};

fn main() -> Result<(), Box<dyn Error>> {
    let url = env::args().nth(1).ok_or("give the URL of a server")?;
    let url: RedisUrl = url.parse()?;
    let by = || Deadline::within(Duration::from_secs(5));
    let store = RedisStore::open(&url, by())?;
    println!("{} is open: {:?}", store.name(), store.facts());
    for warning in store.warnings() {
        println!("warning: {warning}");
    }
    let name = ValueName::new("try-redis/value")?;
    let lifetime = Some(Duration::from_secs(60));
    println!(
        "wrote: {:?}",
        store.write(&name, &[b"value"], lifetime, by())?
    );
    println!("has: {:?}", store.has(std::slice::from_ref(&name), by())?);
    println!("removed: {}", store.remove(&[name], by())?);
    Ok(())
}
