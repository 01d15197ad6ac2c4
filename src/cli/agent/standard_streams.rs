//! Standard input and output for asynchronous tasks.
//!
//! A task reads and writes a pipe itself; what is no pipe takes a thread of tokio's for each chunk. The pipe is opened anew, because a
//! descriptor that does not block would not block for the processes that share it either. Named pipes are left to tokio: one that has lost
//! its writer before it is opened anew never becomes readable.

use super::terminal::close_stdout;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// Standard input.
pub(super) type Input = Box<dyn AsyncRead + Send + Unpin>;
/// Standard output.
pub(super) type Output = Box<dyn AsyncWrite + Send + Unpin>;

/// Returns standard input.
pub(super) fn input() -> Input {
    #[cfg(target_os = "linux")]
    if let Some(pipe) = linux::pipe(0, |path, options| options.open_receiver(path)) {
        return Box::new(pipe);
    }
    Box::new(tokio::io::stdin())
}

/// Returns standard output; [`close`] ends it.
pub(super) fn output() -> Output {
    #[cfg(target_os = "linux")]
    if let Some(pipe) = linux::pipe(1, |path, options| options.open_sender(path)) {
        return Box::new(pipe);
    }
    Box::new(tokio::io::stdout())
}

/// Writes what standard output holds back, and closes it: its reader sees the end while the process goes on.
pub(super) async fn close(mut output: Output) -> io::Result<()> {
    output.flush().await?;
    drop(output);
    close_stdout()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::read_link;
    use std::io;
    use std::os::fd::AsFd;
    use std::path::Path;
    use tokio::net::unix::pipe::OpenOptions;

    /// Wanted capacity of a pipe, the most that Linux gives to a user: each wake of the other side moves more.
    const CAPACITY: usize = 1 << 20;

    /// Opens a standard stream anew; `None` if it is no anonymous pipe, or one of another user.
    pub(super) fn pipe<T: AsFd>(
        number: i32,
        open: impl Fn(&Path, &OpenOptions) -> io::Result<T>,
    ) -> Option<T> {
        let path = format!("/proc/self/fd/{number}");
        let path = Path::new(&path);
        read_link(path).ok().filter(|target| target.to_string_lossy().starts_with("pipe:"))?;
        let pipe = open(path, &OpenOptions::new()).ok()?;
        if rustix::pipe::fcntl_getpipe_size(&pipe).is_ok_and(|capacity| capacity < CAPACITY) {
            let _ = rustix::pipe::fcntl_setpipe_size(&pipe, CAPACITY);
        }
        Some(pipe)
    }

    #[cfg(test)]
    mod tests {
        use super::*;
        use rustix::fs::{OFlags, fcntl_getfl};
        use std::os::fd::AsRawFd;
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        #[tokio::test]
        async fn a_pipe_is_opened_anew_and_stays_blocking_for_others() {
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            let mut input = pipe(reader.as_raw_fd(), |path, options| options.open_receiver(path)).unwrap();
            let mut output = pipe(writer.as_raw_fd(), |path, options| options.open_sender(path)).unwrap();
            for shared in [&reader, &writer] {
                assert!(!fcntl_getfl(shared).unwrap().contains(OFlags::NONBLOCK));
            }
            output.write_all(b"hello").await.unwrap();
            let mut read = [0; 5];
            input.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"hello");
            drop((output, writer));
            assert_eq!(input.read(&mut read).await.unwrap(), 0, "the end");
        }

        #[tokio::test]
        async fn what_is_no_pipe_is_left_alone() {
            let file = std::fs::File::open("/dev/null").unwrap();
            assert!(pipe(file.as_raw_fd(), |path, options| options.open_receiver(path)).is_none());
        }
    }
}
