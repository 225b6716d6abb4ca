//! A connection that heals by itself: what breaks it is reported once, and the next question opens a new one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::redis::aio::{ConnectionLike as _, MultiplexedConnection};
use ::redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline, RedisError,
    RedisResult, Value, cmd,
};
use tokio::sync::{Mutex, OnceCell};

use super::options::{RedisAddress, RedisOptions};
use super::keys::Keys;
use super::{StoreError, outage};

/// How long a new connection may take.
// An answer that takes longer than this is no answer either; see `RedisOptions::reply_timeout`.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Commands that wait for room in one connection; the others wait outside.
const PIPELINE_DEPTH: usize = 256;

enum Route {
    /// And the database that is used there.
    Direct(Box<Client>, i64),
    Sentinel(Box<Mutex<SentinelClient>>),
}

/// Whom to connect to.
pub(super) struct Server {
    route: Route,
    /// It has answered us, so that it took the password then.
    has_answered: AtomicBool,
}

impl Server {
    pub(super) fn new(options: &RedisOptions) -> Result<Server, StoreError> {
        let route = Server::route(options).map_err(|error| outage::judge("understand the address of Redis", error))?;
        Ok(Server { route, has_answered: AtomicBool::new(false) })
    }

    fn route(options: &RedisOptions) -> RedisResult<Route> {
        let direct = |info: ConnectionInfo| {
            let database = info.redis_settings().db();
            let mut settings = info.redis_settings().clone().set_db(0);
            if let Some(password) = &options.password {
                settings = settings.set_password(password.expose());
            }
            Client::open(info.set_redis_settings(settings)).map(|client| Route::Direct(Box::new(client), database))
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
            Route::Direct(client, database) => {
                let mut redis = client.get_multiplexed_async_connection_with_config(&config).await?;
                if *database != 0 {
                    // Not by the client: it drops the word by which Redis refuses it, and one that is only busy would look like a mistake in the configuration.
                    redis.set_response_timeout(CONNECT_TIMEOUT);
                    cmd("SELECT").arg(*database).exec_async(&mut redis).await?;
                    redis.set_response_timeout(reply_timeout);
                }
                Ok(redis)
            }
            Route::Sentinel(client) => {
                let primary = client.lock().await.async_get_client().await?;
                primary.get_multiplexed_async_connection_with_config(&config).await
            }
        }
    }
}

/// Leads to one process of one server for as long as it lasts: who starts Redis anew, or another one, breaks it.
#[derive(Clone)]
pub(super) struct Open {
    /// How many were opened before it.
    pub(super) number: u64,
    redis: MultiplexedConnection,
    /// What the process at its other end calls itself: another name after each start.
    run: Arc<OnceCell<String>>,
    /// A witness has looked at the store since that process was started.
    watched: Arc<AtomicBool>,
}

/// What is open now, and how many were opened so far.
#[derive(Default)]
struct Current {
    opened: u64,
    open: Option<Open>,
}

/// Keys of the store that tell whether it may be written to.
struct Watched {
    /// The hash whose field `run` tells which process a witness has looked at last.
    store: String,
    /// Below zero while the store is halted.
    revision: String,
}

pub(super) struct Connection {
    server: Arc<Server>,
    reply_timeout: Duration,
    /// Where that stands which a witness has seen. None: what writes does not care.
    watched_in: Option<Watched>,
    current: Mutex<Current>,
}

impl Connection {
    pub(super) fn new(server: Arc<Server>, reply_timeout: Duration) -> Connection {
        Connection { server, reply_timeout, watched_in: None, current: Mutex::default() }
    }

    /// What writes waits until a witness has looked.
    #[must_use]
    pub(super) fn only_watched(self, keys: &Keys) -> Connection {
        Connection { watched_in: Some(Watched { store: keys.store.clone(), revision: keys.revision.clone() }), ..self }
    }

    /// What an error that was met here means.
    fn judge(&self, operation: &'static str, error: RedisError) -> StoreError {
        let has_answered = self.server.has_answered.load(Ordering::Relaxed);
        if has_answered { outage::judge_again(operation, error) } else { outage::judge(operation, error) }
    }

    pub(super) async fn query(&self, operation: &'static str, command: &Cmd) -> Result<Value, StoreError> {
        self.ask(command).await.map_err(|error| self.judge(operation, error))
    }

    /// Sends `call`, an `EVALSHA`; loads the script and sends it again if Redis does not know it.
    pub(super) async fn run_script(
        &self,
        operation: &'static str,
        call: &Cmd,
        code: &str,
    ) -> Result<Value, StoreError> {
        let judge = |error| self.judge(operation, error);
        let open = self.open().await.map_err(judge)?;
        self.run_on(&open, call, code).await.map_err(judge)
    }

    /// The same for a script that writes. Refused where Redis was started since a witness last looked: it may have lost something, of
    /// which only a witness can tell.
    pub(super) async fn run_writing(
        &self,
        operation: &'static str,
        call: &Cmd,
        code: &str,
    ) -> Result<Value, StoreError> {
        let judge = |error| self.judge(operation, error);
        let open = self.open().await.map_err(judge)?;
        if !self.is_watched(&open).await.map_err(judge)? {
            let is_halted = self.is_halted(&open).await.map_err(judge)?;
            return Err(if is_halted { StoreError::Halted { operation } } else { StoreError::Unwatched { operation } });
        }
        self.run_on(&open, call, code).await.map_err(judge)
    }

    /// Has a witness looked since Redis was started?
    async fn is_watched(&self, open: &Open) -> RedisResult<bool> {
        let Some(Watched { store, .. }) = &self.watched_in else { return Ok(true) };
        if !open.watched.load(Ordering::Relaxed) {
            let run = self.run_of(open).await?;
            let seen = self.ask_on(open, cmd("HGET").arg(store).arg("run")).await?;
            open.watched.store(seen == Value::BulkString(run.into_bytes()), Ordering::Relaxed);
        }
        Ok(open.watched.load(Ordering::Relaxed))
    }

    /// A witness that has found something missing has looked, too, and waits for a person.
    async fn is_halted(&self, open: &Open) -> RedisResult<bool> {
        let Some(Watched { revision, .. }) = &self.watched_in else { return Ok(false) };
        let revision = self.ask_on(open, cmd("GET").arg(revision)).await?;
        Ok(matches!(revision, Value::BulkString(revision) if revision.starts_with(b"-")))
    }

    /// What may be written to.
    pub(super) async fn open_watched(&self) -> RedisResult<Open> {
        let open = self.open().await?;
        let unwatched = || RedisError::from((ErrorKind::Client, "no witness has looked since Redis was started"));
        if self.is_watched(&open).await? { Ok(open) } else { Err(unwatched()) }
    }

    /// Sends all of it at once, and nothing else of this connection's between its commands. An answer for each of them, also where that is an error.
    pub(super) async fn pipeline(&self, open: &Open, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        let answers = open.redis.clone().req_packed_commands(pipeline, 0, pipeline.len()).await;
        if answers.is_err() {
            // An answer that comes late is nobody's.
            self.give_up(open.number).await;
        }
        answers
    }

    /// The answers to all of `pipeline`, which only reads; of each also where that is an error which is only its own.
    pub(super) async fn queries(&self, operation: &'static str, pipeline: &Pipeline) -> Result<Vec<Value>, StoreError> {
        let judge = |error| self.judge(operation, error);
        let open = self.open().await.map_err(judge)?;
        let answers = self.pipeline(&open, pipeline).await.map_err(judge)?;
        let refused = answers.iter().filter_map(|answer| if let Value::ServerError(error) = answer { Some(RedisError::from(error.clone())) } else { None });
        match refused.into_iter().find(outage::breaks_connection) {
            None => Ok(answers),
            Some(error) => {
                self.give_up(open.number).await;
                Err(judge(error))
            }
        }
    }

    /// What the process at its other end calls itself.
    pub(super) async fn run(&self) -> RedisResult<String> {
        let open = self.open().await?;
        self.run_of(&open).await
    }

    /// The same for a script whose last argument is the name of the very process that runs it.
    pub(super) async fn run_with_run(
        &self,
        operation: &'static str,
        mut call: Cmd,
        code: &str,
    ) -> Result<Value, StoreError> {
        let judge = |error| self.judge(operation, error);
        let open = self.open().await.map_err(judge)?;
        call.arg(self.run_of(&open).await.map_err(judge)?);
        self.run_on(&open, &call, code).await.map_err(judge)
    }

    async fn run_on(&self, open: &Open, call: &Cmd, code: &str) -> RedisResult<Value> {
        match self.ask_on(open, call).await {
            Err(error) if error.code() == Some("NOSCRIPT") => {
                self.ask_on(open, cmd("SCRIPT").arg("LOAD").arg(code)).await?;
                self.ask_on(open, call).await
            }
            answer => answer,
        }
    }

    pub(super) async fn run_of(&self, open: &Open) -> RedisResult<String> {
        let ask = async || {
            let answer = self.ask_on(open, cmd("INFO").arg("server")).await?;
            let text: String = ::redis::from_redis_value(answer)?;
            let run = text.lines().find_map(|line| line.strip_prefix("run_id:"));
            run.map(|run| run.trim().to_owned()).ok_or_else(|| RedisError::from((ErrorKind::Parse, "INFO server has no run_id")))
        };
        open.run.get_or_try_init(ask).await.cloned()
    }

    async fn ask(&self, command: &Cmd) -> RedisResult<Value> {
        let open = self.open().await?;
        self.ask_on(&open, command).await
    }

    async fn ask_on(&self, open: &Open, command: &Cmd) -> RedisResult<Value> {
        let answer: RedisResult<Value> = command.query_async(&mut open.redis.clone()).await;
        match &answer {
            Ok(_) => self.server.has_answered.store(true, Ordering::Relaxed),
            Err(error) if outage::breaks_connection(error) => self.give_up(open.number).await,
            Err(_) => {}
        }
        answer
    }

    /// One caller opens, the others wait for it.
    async fn open(&self) -> RedisResult<Open> {
        let mut current = self.current.lock().await;
        if let Some(open) = &current.open {
            return Ok(open.clone());
        }
        let redis = self.server.open(self.reply_timeout).await?;
        let opened = Open { number: current.opened, redis, run: Arc::default(), watched: Arc::default() };
        current.opened += 1;
        current.open = Some(opened.clone());
        Ok(opened)
    }

    /// Forgets connection `number`, unless somebody has replaced it already.
    pub(super) async fn give_up(&self, number: u64) {
        let mut current = self.current.lock().await;
        if current.open.as_ref().is_some_and(|open| open.number == number) {
            current.open = None;
        }
    }
}
