//! A connection that heals by itself: what breaks it is reported once, and the next question opens a new one.

use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisError, RedisResult,
    Value, cmd,
};
use tokio::sync::Mutex;

use super::options::{RedisAddress, RedisOptions};
use super::{StoreError, outage};

/// How long a new connection may take.
// An answer that takes longer than this is no answer either; see `RedisOptions::reply_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Commands that wait for room in one connection; the others wait outside.
const PIPELINE_DEPTH: usize = 256;

enum Route {
    Direct(Box<Client>),
    Sentinel(Box<Mutex<SentinelClient>>),
}

/// Whom to connect to.
pub(super) struct Server {
    route: Route,
}

impl Server {
    pub(super) fn new(options: &RedisOptions) -> Result<Server, StoreError> {
        let route = Server::route(options).map_err(|error| outage::judge("understand the address of Redis", error))?;
        Ok(Server { route })
    }

    fn route(options: &RedisOptions) -> RedisResult<Route> {
        let direct = |info: ConnectionInfo| {
            let mut settings = info.redis_settings().clone();
            if let Some(password) = &options.password {
                settings = settings.set_password(password.expose());
            }
            Client::open(info.set_redis_settings(settings)).map(|client| Route::Direct(Box::new(client)))
        };
        match &options.address {
            RedisAddress::Url(url) => direct(url.as_str().into_connection_info()?),
            RedisAddress::Socket(path) => direct(ConnectionAddr::Unix(path.clone()).into_connection_info()?),
            RedisAddress::Sentinel { nodes, primary } => {
                let nodes = nodes.iter().map(|node| Ok(node.as_str().into_connection_info()?.addr().clone()));
                let nodes = nodes.collect::<RedisResult<Vec<_>>>()?;
                let mut builder = SentinelClientBuilder::new(nodes, primary, SentinelServerType::Master)?;
                if let Some(password) = &options.password {
                    builder = builder.set_client_to_redis_password(password.expose());
                }
                Ok(Route::Sentinel(Box::new(Mutex::new(builder.build()?))))
            }
        }
    }

    async fn open(&self, reply_timeout: Duration) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(reply_timeout))
            .set_pipeline_buffer_size(PIPELINE_DEPTH);
        match &self.route {
            Route::Direct(client) => client.get_multiplexed_async_connection_with_config(&config).await,
            Route::Sentinel(client) => {
                let primary = client.lock().await.async_get_client().await?;
                primary.get_multiplexed_async_connection_with_config(&config).await
            }
        }
    }
}

/// What is open now, and how many were opened before it.
#[derive(Default)]
struct Current {
    number: u64,
    open: Option<MultiplexedConnection>,
}

pub(super) struct Connection {
    server: Arc<Server>,
    reply_timeout: Duration,
    current: Mutex<Current>,
}

impl Connection {
    pub(super) fn new(server: Arc<Server>, reply_timeout: Duration) -> Connection {
        Connection { server, reply_timeout, current: Mutex::default() }
    }

    pub(super) async fn query(&self, operation: &'static str, command: &Cmd) -> Result<Value, StoreError> {
        self.ask(command).await.map_err(|error| outage::judge(operation, error))
    }

    /// Sends `call`, an `EVALSHA`; loads the script and sends it again if Redis does not know it.
    pub(super) async fn run_script(
        &self,
        operation: &'static str,
        call: &Cmd,
        code: &str,
    ) -> Result<Value, StoreError> {
        match self.ask(call).await {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                self.query(operation, cmd("SCRIPT").arg("LOAD").arg(code)).await?;
                self.query(operation, call).await
            }
            answer => answer.map_err(|error| outage::judge(operation, error)),
        }
    }

    async fn ask(&self, command: &Cmd) -> RedisResult<Value> {
        let (number, mut connection) = self.open().await?;
        let answer: RedisResult<Value> = command.query_async(&mut connection).await;
        if let Err(error) = &answer
            && outage::breaks_connection(error)
        {
            self.give_up(number).await;
        }
        answer
    }

    /// One caller opens, the others wait for it.
    async fn open(&self) -> Result<(u64, MultiplexedConnection), RedisError> {
        let mut current = self.current.lock().await;
        if let Some(open) = &current.open {
            return Ok((current.number, open.clone()));
        }
        let opened = self.server.open(self.reply_timeout).await?;
        current.number += 1;
        current.open = Some(opened.clone());
        Ok((current.number, opened))
    }

    /// Forgets connection `number`, unless somebody has replaced it already.
    async fn give_up(&self, number: u64) {
        let mut current = self.current.lock().await;
        if current.number == number {
            current.open = None;
        }
    }
}
