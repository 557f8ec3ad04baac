//! The client for programs without a runtime: the same calls, each waiting for its result.

use mneme_ipc::Method;
use mneme_ipc::types::{HelloResult, TaskEvent};
use tokio::runtime::{Builder, Runtime};

use crate::client::{CallOptions, CancelToken, Client as AsyncClient};
use crate::error::ClientError;
use crate::options::ClientOptions;

/// A blocking client. Threads may share it: their calls run side by side.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    inner: AsyncClient,
}

impl Client {
    /// Connects, so that a daemon that is not there is noticed now.
    pub fn connect(options: ClientOptions) -> Result<Self, ClientError> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(ClientError::Runtime)?;
        let inner = runtime.block_on(AsyncClient::connect(options))?;
        Ok(Self { runtime, inner })
    }

    /// What the daemon said in its greeting.
    pub fn hello(&self) -> Result<HelloResult, ClientError> {
        self.runtime.block_on(self.inner.hello())
    }

    /// Calls a method and waits for its result.
    pub fn call<M: Method>(&self, params: M::Params) -> Result<M::Result, ClientError> {
        self.runtime.block_on(self.inner.call::<M>(params))
    }

    /// Calls a method with options.
    pub fn call_with<M: Method>(&self, params: M::Params, options: CallOptions) -> Result<M::Result, ClientError> {
        self.runtime.block_on(self.inner.call_with::<M>(params, options))
    }

    /// Calls a method on a connection of its own, until another thread cancels the token; see [`AsyncClient::call_until`].
    pub fn call_until<M: Method>(
        &self,
        params: M::Params,
        options: CallOptions,
        cancel: &CancelToken,
    ) -> Result<M::Result, ClientError> {
        self.runtime.block_on(self.inner.call_until::<M>(params, options, cancel))
    }

    /// Calls a method that streams; `observe` sees every event before the result comes.
    pub fn call_streaming<M: Method>(
        &self,
        params: M::Params,
        options: CallOptions,
        observe: impl FnMut(TaskEvent),
    ) -> Result<M::Result, ClientError> {
        self.runtime.block_on(self.inner.call_streaming::<M>(params, options, observe))
    }
}
