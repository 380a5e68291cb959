//! Pages below `/debug/` beside the calls of the Fast-Path.

use axum::Router;
use fsb_rpc::Incoming;
use futures_util::future::{BoxFuture, Either};
use futures_util::{FutureExt, TryFutureExt};
use std::convert::Infallible;
use std::task::{Context, Poll};
use tonic::codegen::{Service, http};

/// A service with pages beside it.
#[derive(Clone)]
pub struct Beside<S> {
    calls: S,
    pages: Option<Router>,
}

impl<S> Beside<S> {
    /// Without pages it is the service alone.
    pub fn new(calls: S, pages: Option<Router>) -> Self {
        Self { calls, pages }
    }
}

impl<S> Service<http::Request<Incoming>> for Beside<S>
where
    S: Service<http::Request<Incoming>, Response = http::Response<tonic::body::Body>, Error = Infallible>,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Either<S::Future, BoxFuture<'static, Result<S::Response, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.calls.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Self::Future {
        match &mut self.pages {
            Some(pages) if request.uri().path().starts_with("/debug/") => {
                let page = pages.call(request).map_ok(|page| page.map(tonic::body::Body::new));
                Either::Right(page.boxed())
            }
            _ => Either::Left(self.calls.call(request)),
        }
    }
}
