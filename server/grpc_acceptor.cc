#include "server/grpc_acceptor.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

namespace denoised {
namespace {

// After accept ran out of descriptors or memory: others need the time to give some back.
constexpr int kBreathMilliseconds = 50;

ino_t InodeOf(int fd) {
  struct stat status {};
  return fstat(fd, &status) == 0 ? status.st_ino : 0;
}

}  // namespace

GrpcAcceptor::GrpcAcceptor(const Listener* listener, int64_t max_connections)
    : listener_(listener),
      max_connections_(max_connections),
      stop_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}

GrpcAcceptor::~GrpcAcceptor() {
  Stop();
  close(stop_);
}

void GrpcAcceptor::AddTo(grpc::ServerBuilder* builder) {
  using Type = grpc::ServerBuilder::experimental_type::ExternalConnectionType;
  grpc_ = builder->experimental().AddExternalConnectionAcceptor(Type::FROM_FD,
                                                                grpc::InsecureServerCredentials());
}

void GrpcAcceptor::Start() {
  thread_ = std::thread([this] { Run(); });
}

void GrpcAcceptor::Stop() {
  eventfd_write(stop_, 1);
  if (thread_.joinable()) thread_.join();
}

int64_t GrpcAcceptor::open() const {
  std::lock_guard lock(mutex_);
  ForgetClosed();
  return static_cast<int64_t>(connections_.size());
}

void GrpcAcceptor::Run() {
  std::vector<pollfd> waiting = {{stop_, POLLIN, 0}};
  for (const int fd : listener_->fds()) waiting.push_back({fd, POLLIN, 0});
  for (;;) {
    poll(waiting.data(), waiting.size(), -1);
    if (waiting.front().revents != 0) return;
    for (size_t i = 1; i < waiting.size(); ++i) {
      if (waiting[i].revents != 0) Accept(waiting[i].fd);
    }
  }
}

void GrpcAcceptor::Accept(int listening) {
  const int fd = AcceptConnection(listening);
  if (fd < 0) {
    if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      pollfd stop{stop_, POLLIN, 0};
      poll(&stop, 1, kBreathMilliseconds);
    }
    return;
  }
  if (refuses_all_) {
    ++turned_away_;
    ++refused_;
    close(fd);
    return;
  }
  {
    std::lock_guard lock(mutex_);
    if (static_cast<int64_t>(connections_.size()) >= max_connections_) ForgetClosed();
    if (static_cast<int64_t>(connections_.size()) >= max_connections_) {
      ++refused_;
      close(fd);  // an end at once is better than a wait for ever
      return;
    }
    connections_[fd] = InodeOf(fd);
  }
  grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
  connection.listener_fd = listening;
  connection.fd = fd;
  grpc_->HandleNewConnection(&connection);
}

void GrpcAcceptor::ForgetClosed() const {
  std::erase_if(connections_,
                [](const auto& entry) { return InodeOf(entry.first) != entry.second; });
}

}  // namespace denoised
