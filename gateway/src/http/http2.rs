//! One HTTP/2 connection: many requests at once, gRPC among them.

use std::{
    net::IpAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    connection::{BUFFER_BYTES_MAX, Edge, FIRST_HEAD_TIMEOUT},
    exchange::Streams,
};
use crate::gateway::Gateway;

/// What a client says first: nothing of HTTP/1.1 begins like this.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Requests of one connection at once, streams among them. More: they wait.
const STREAMS_MAX: u32 = 128;

/// What may be on its way to us of one request, and of all requests of a connection: a body is at most 80 KiB.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 256 * 1024;

/// What waits for one stream's reader. More: whoever writes waits.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Headers of one request, as the library counts them. What is above this it refuses with a bare status: so it is more than is
/// accepted, and what is above that gets the one object.
const HEAD_BYTES_MAX: u32 = 4 * BUFFER_BYTES_MAX as u32;

/// A silent connection is asked for a sign of life so often, and is over when none comes: half of what common proxies
/// wait.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection on which nothing has been asked for this long is ended, politely. Clients of gRPC keep one for as long as
/// they live and come back by themselves.
const IDLE_MAX: Duration = Duration::from_secs(10 * 60);

/// How often it is looked at whether a connection is idle.
const LOOK: Duration = Duration::from_secs(5);

/// What the requests of a connection tell it.
#[derive(Default)]
pub(crate) struct Busy {
    /// Requests that are being answered.
    now: AtomicU32,
    /// Those that there have been.
    ever: AtomicU32,
}

/// A request that is being answered, its answer's body included.
pub(crate) struct Answering(Arc<Busy>);

impl Busy {
    pub(crate) fn begin(self: &Arc<Self>) -> Answering {
        self.now.fetch_add(1, Ordering::Relaxed);
        self.ever.fetch_add(1, Ordering::Relaxed);
        Answering(Arc::clone(self))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a connection to its end.
pub(crate) async fn serve<IO>(stream: IO, peer: IpAddr, gateway: &Arc<Gateway>, routes: super::routes::Routes)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let busy = Arc::new(Busy::default());
    let edge = Edge::of_http2(Arc::clone(gateway), routes, peer, Arc::clone(&busy));
    let mut server = http2::Builder::new(Streams::new(gateway.meters.answers_stalled_http2.clone()));
    server
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .max_header_list_size(HEAD_BYTES_MAX)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    let mut connection = pin!(server.serve_connection(TokioIo::new(stream), edge));
    let mut leaving = gateway.leaving.subscribe();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (began, mut last_busy, mut ends) = (Instant::now(), Instant::now(), None);
    loop {
        // Once it is known that it ends, what has begun may go on for a while.
        let at = ends;
        let over = async move {
            match at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // However it ended, there is nobody left to be told.
            _ = &mut connection => return,
            () = over => return,
            _ = leaving.wait_for(|leaving| *leaving), if ends.is_none() => {
                connection.as_mut().graceful_shutdown();
                // As long as WebSockets have, and a moment for last words.
                ends = Some(Instant::now() + gateway.config.drain_window.get() + PING_TIMEOUT);
            }
            _ = look.tick(), if ends.is_none() => {
                let has_asked = busy.ever.load(Ordering::Relaxed) > 0;
                if busy.now.load(Ordering::Relaxed) > 0 {
                    last_busy = Instant::now();
                }
                if !has_asked && began.elapsed() > FIRST_HEAD_TIMEOUT {
                    return;
                }
                if last_busy.elapsed() > IDLE_MAX {
                    connection.as_mut().graceful_shutdown();
                    ends = Some(Instant::now() + PING_TIMEOUT);
                }
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{convert::Infallible, net::Ipv4Addr};

    use bytes::Bytes;
    use futures_util::{StreamExt, future::pending, stream};
    use http::{Request, Response};
    use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
    use hyper::{
        body::{Frame, Incoming},
        client::conn::http2::{Builder, SendRequest},
    };
    use hyper_util::rt::TokioExecutor;
    use tokio::{io::duplex, time::sleep};

    use super::*;
    use crate::{
        http::{exchange::STALLED_MAX, routes},
        sweep::tests::World,
    };

    type Body = UnsyncBoxBody<Bytes, Infallible>;

    /// A client over a pipe, whose answers have windows of this size.
    pub(crate) struct Client(SendRequest<Body>, String);

    impl Client {
        pub(crate) async fn of(world: &World, window: u32) -> Self {
            let (ours, theirs) = duplex(64 * 1024);
            let (gateway, routes) = (Arc::clone(&world.gateway), routes::of(&world.gateway));
            tokio::spawn(async move { serve(theirs, Ipv4Addr::LOCALHOST.into(), &gateway, routes).await });
            let mut client = Builder::new(TokioExecutor::new());
            client.initial_stream_window_size(window).initial_connection_window_size(1 << 20);
            let (client, connection) = client.handshake(TokioIo::new(ours)).await.unwrap();
            tokio::spawn(connection);
            Self(client, format!("Bearer {}", world.token("ada")))
        }

        pub(crate) fn request(&self, method: &str, path: &str) -> http::request::Builder {
            Request::builder().method(method).uri(format!("http://localhost{path}")).header("authorization", &self.1)
        }

        pub(crate) fn ask(
            &mut self,
            request: Request<Body>,
        ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + use<> {
            self.0.send_request(request)
        }

        async fn get(&mut self, path: &str) -> Response<Incoming> {
            let request = self.request("GET", path).body(Full::default().boxed_unsync()).unwrap();
            self.ask(request).await.unwrap()
        }
    }

    /// A beginning, and no end.
    pub(crate) fn endless(beginning: &'static [u8]) -> Body {
        let begun = stream::iter([Ok(Frame::data(Bytes::from_static(beginning)))]);
        StreamBody::new(begun.chain(stream::once(pending()))).boxed_unsync()
    }

    fn stalled(world: &World) -> u64 {
        world.counted("chappe_gateway_answers_stalled_total{protocol=\"http2\"}")
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_is_given_up_and_the_connection_goes_on() {
        let world = World::new();
        for (window, path) in [(0, "/openapi.json"), (1, "/openapi.json"), (1, "/v1/conversations")] {
            let before = stalled(&world);
            let mut client = Client::of(&world, window).await;
            let answer = client.get(path).await;
            assert_eq!(answer.status(), 200);
            // Nothing is given back of the windows.
            sleep(STALLED_MAX - Duration::from_secs(1)).await;
            assert_eq!(stalled(&world), before, "{window} {path}");
            sleep(Duration::from_secs(2)).await;
            let is_small = path != "/openapi.json";
            assert_eq!(stalled(&world), before + u64::from(!is_small), "{window} {path}");
            // A small one lies with the library, and goes with the connection.
            if !is_small {
                let mut body = answer.into_body();
                let reset = loop {
                    match body.frame().await.expect("a reset is no end") {
                        Ok(frame) => assert!(frame.into_data().is_ok_and(|data| data.len() <= 1)),
                        Err(reset) => break reset,
                    }
                };
                assert!(!reset.is_timeout(), "{reset:?}");
            }
            assert_eq!(client.get("/").await.status(), 200);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_a_little_now_and_then_gets_all_of_it() {
        let world = World::new();
        let mut client = Client::of(&world, 20_000).await;
        let (began, mut bytes) = (Instant::now(), 0);
        let mut body = client.get("/openapi.json").await.into_body();
        while let Some(frame) = body.frame().await {
            let taken = frame.unwrap().data_ref().map_or(0, Bytes::len);
            bytes += taken;
            // Half of what is waited for each portion: by bytes, since frames are cut where windows and portions end.
            sleep(STALLED_MAX.mul_f64(taken as f64 / (2.0 * 16_384.0))).await;
        }
        assert!(began.elapsed() > 3 * STALLED_MAX);
        assert_eq!(bytes, include_str!("../../../docs/openapi.json").len());
        assert_eq!(stalled(&world), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn unread_pages_of_a_connection_are_a_few_and_the_rest_wait() {
        let world = World::new();
        let chat = world.node.conversation(&["ada"], 0, false);
        let text = "x".repeat(2_000);
        for _ in 0..120 {
            world.node.say(chat, "ada", &text);
        }
        let mut client = Client::of(&world, 0).await;
        let path = format!("/v1/conversations/{chat}/messages?limit=120");
        let mut answers = Vec::new();
        for _ in 0..100 {
            let request = client.request("GET", &path).body(Full::default().boxed_unsync()).unwrap();
            answers.push(tokio::spawn(client.ask(request)));
        }
        sleep(Duration::from_secs(5)).await;
        let asked = || world.node.state.lock().heard.iter().filter(|name| *name == "message.list").count();
        let fit = chappe_schema::limit::ANSWERS_HELD_BYTES_MAX / (120 * 2_000);
        assert!((2..=fit).contains(&asked()), "{} of {fit}", asked());
        // They make room for each other when they are given up.
        for answer in answers {
            assert_eq!(answer.await.unwrap().unwrap().status(), 200);
        }
        assert_eq!(asked(), 100);
    }
}
