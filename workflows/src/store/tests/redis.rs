use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::store::Store;
use crate::store::conformance::{self, Bed};
use crate::store::private_redis::PrivateRedis;
use crate::store::redis::RedisStore;

struct RedisBed {
    store: Arc<RedisStore>,
    _server: PrivateRedis,
}

impl RedisBed {
    async fn new() -> RedisBed {
        let server = PrivateRedis::start();
        let store = RedisStore::connect(server.options()).await.unwrap();
        RedisBed { store: Arc::new(store), _server: server }
    }
}

#[async_trait]
impl Bed for RedisBed {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    async fn pass(&self, by: Duration) {
        let until = self.store.now().await.unwrap() + by;
        while self.store.now().await.unwrap() < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

macro_rules! test_each {
    ($($check:ident)*) => {
        $(
            #[tokio::test]
            async fn $check() {
                conformance::$check(&RedisBed::new().await).await;
            }
        )*
    };
}

crate::for_each_store_check!(test_each);
