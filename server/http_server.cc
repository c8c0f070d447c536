#include "server/http_server.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <string_view>
#include <utility>

namespace denoised {
namespace {

using Clock = std::chrono::steady_clock;

// Deadlines are looked at this often.
constexpr int kTickMilliseconds = 100;
// How long a client may take to notice that the connection was ended.
constexpr std::chrono::milliseconds kLinger{1000};
// Where descriptors ran out and none is ours to give back.
constexpr std::chrono::milliseconds kBreath{10};
// Who has come, asked or was answered so lately is about its business.
constexpr std::chrono::milliseconds kLately{1000};
constexpr uint64_t kMailboxId = 0;
// Ids up to here belong to listening sockets; connections come after.
constexpr uint64_t kLastListenerId = 63;

std::string_view StatusText(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 413:
      return "Content Too Large";
    case 431:
      return "Request Header Fields Too Large";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Unknown";
  }
}

// What stands before a chunk of HTTP/1.1, in as many characters for each; and after the last.
std::string ChunkHead(size_t bytes) {
  std::string head = "00000000\r\n";
  std::array<char, 8> digits;
  const auto end = std::to_chars(digits.begin(), digits.end(), bytes, 16).ptr;
  std::copy_backward(digits.begin(), end, head.begin() + 8);
  return head;
}
constexpr char kLastChunk[] = "0\r\n\r\n";

bool MayReadMore(ssize_t got) { return got < 0 && (errno == EAGAIN || errno == EINTR); }

}  // namespace

struct HttpServer::Connection {
  // kReading: waits for a request, or for the rest of one. kWaiting: for the handler. kWriting: for
  // the client to take the answer. kEnding: for the client to see the end.
  enum class State : uint8_t { kReading, kWaiting, kWriting, kEnding };

  bool idle() const { return state == State::kReading && in.empty(); }

  uint64_t id = 0;
  int fd = -1;
  State state = State::kReading;
  std::string in;     // received and not yet looked at
  std::string out;    // the answer, or what there is of it
  HttpPieces pieces;  // of the answer, that are not in `out` yet
  size_t sent = 0;    // bytes of `out` that are on their way
  bool head_only = false;
  bool takes_chunks = false;
  bool close_after = false;
  Clock::time_point since;     // of the last change from or to idle
  Clock::time_point deadline;  // of the request, the idleness or the end
};

struct HttpServer::Mailbox {
  Mailbox() : wake(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}
  ~Mailbox() { close(wake); }
  void Put(uint64_t id, HttpResponse response) {
    std::lock_guard lock(mutex);
    replies.emplace_back(id, std::move(response));
    eventfd_write(wake, 1);
  }

  const int wake;
  std::mutex mutex;
  std::vector<std::pair<uint64_t, HttpResponse>> replies;  // guarded by mutex
};

HttpServer::HttpServer(const Listener* listener, const Limits& limits, HttpHandler handler)
    : listener_(listener),
      limits_(limits),
      handler_(std::move(handler)),
      mailbox_(std::make_shared<Mailbox>()),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      last_id_(kLastListenerId) {
  thread_ = std::thread([this] { Run(); });
}

HttpServer::~HttpServer() {
  stopping_ = true;
  eventfd_write(mailbox_->wake, 1);
  thread_.join();
  for (const auto& [id, connection] : connections_) close(connection->fd);
  close(epoll_);
}

void HttpServer::Run() {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kMailboxId;
  epoll_ctl(epoll_, EPOLL_CTL_ADD, mailbox_->wake, &event);
  for (const int fd : listener_->fds()) {
    if (++event.data.u64 > kLastListenerId) break;
    epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event);
  }
  while (!stopping_) {
    Wait(connections_.empty() ? -1 : kTickMilliseconds);
    EndLate();
  }
}

void HttpServer::Wait(int timeout_ms) {
  std::array<epoll_event, 64> events;
  const int count = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), timeout_ms);
  for (int i = 0; i < count; ++i) {
    const uint64_t id = events[static_cast<size_t>(i)].data.u64;
    if (id == kMailboxId) {
      DeliverReplies();
    } else if (id <= kLastListenerId) {
      AcceptAll(listener_->fds().at(id - 1));
    } else if (const auto found = connections_.find(id); found != connections_.end()) {
      Serve(found->second.get(), events[static_cast<size_t>(i)].events);
    }
  }
}

// A few at a time, so that a flood of connections does not keep the others waiting.
void HttpServer::AcceptAll(int listening) {
  for (int i = 0; i < 16; ++i) {
    const int fd = AcceptConnection(listening);
    if (fd < 0 && (errno != EMFILE && errno != ENFILE)) return;
    if (static_cast<int64_t>(connections_.size()) >= limits_.max_connections || fd < 0) {
      ++refused_;
      const bool room = MakeRoom();
      // Out of descriptors: the connection waits for the next look at the listening socket.
      if (fd < 0 && !room) std::this_thread::sleep_for(kBreath);
      if (fd < 0) return;
      if (!room) {
        close(fd);
        continue;
      }
    }
    auto connection = std::make_unique<Connection>();
    connection->id = ++last_id_;
    connection->fd = fd;
    connection->since = Clock::now();
    connection->deadline = connection->since + limits_.request_time;
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = connection->id;
    epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event);
    connections_.emplace(connection->id, std::move(connection));
    open_ = static_cast<int64_t>(connections_.size());
  }
}

// Closes the connection that has been idle longest, else the one whose request has dragged longest;
// where neither is so since long, an idle one all the same, else whichever has been at it longest.
bool HttpServer::MakeRoom() {
  const auto lately = Clock::now() - kLately;
  const Connection* victim = nullptr;
  for (const auto& [id, connection] : connections_) {
    if (connection->state == Connection::State::kWaiting) continue;
    const auto rank = [lately](const Connection& c) {
      const bool is_long = c.since <= lately;
      const bool drags = c.state == Connection::State::kReading && is_long;
      const int class_of_busy = drags ? 1 : 3, class_of_idle = is_long ? 0 : 2;
      return std::pair(c.idle() ? class_of_idle : class_of_busy, c.since);
    };
    if (victim == nullptr || rank(*connection) < rank(*victim)) victim = connection.get();
  }
  if (victim != nullptr) Close(victim->id);
  return victim != nullptr;
}

void HttpServer::Serve(Connection* connection, uint32_t events) {
  const bool broken = (events & (EPOLLERR | EPOLLHUP)) != 0;
  if (broken && connection->state != Connection::State::kReading) return Close(connection->id);
  switch (connection->state) {
    case Connection::State::kReading:
    case Connection::State::kEnding:
      return Read(connection);
    case Connection::State::kWriting:
      return Write(connection);
    case Connection::State::kWaiting:
      return;
  }
}

void HttpServer::Read(Connection* connection) {
  std::array<char, 16384> block;
  const ssize_t got = recv(connection->fd, block.data(), block.size(), 0);
  if (MayReadMore(got)) return;
  if (got <= 0) return Close(connection->id);
  if (connection->state == Connection::State::kEnding) return;  // unread, so that no reset is sent
  if (connection->in.empty()) {
    connection->since = Clock::now();
    connection->deadline = connection->since + limits_.request_time;
  }
  connection->in.append(block.data(), static_cast<size_t>(got));
  ServeBuffered(connection);
}

// Hands the next request to the handler, once it is complete.
void HttpServer::ServeBuffered(Connection* connection) {
  const HttpHead head = ParseHttpHead(connection->in);
  if (head.state == HttpHead::State::kIncomplete) return Watch(*connection, EPOLLIN);
  if (head.state == HttpHead::State::kRefused) return Refuse(connection, head.status, head.why);
  connection->in.erase(0, head.used);
  connection->head_only = head.request.method == "HEAD";
  connection->takes_chunks = head.request.takes_chunks;
  // What follows a head with a body cannot be told from the body.
  connection->close_after = !head.request.keep_alive || head.request.content_length > 0;
  connection->state = Connection::State::kWaiting;
  Watch(*connection, 0);
  handler_(head.request, [mailbox = mailbox_, id = connection->id](HttpResponse response) {
    mailbox->Put(id, std::move(response));
  });
}

void HttpServer::DeliverReplies() {
  eventfd_t count = 0;
  eventfd_read(mailbox_->wake, &count);
  std::vector<std::pair<uint64_t, HttpResponse>> replies;
  {
    std::lock_guard lock(mailbox_->mutex);
    replies.swap(mailbox_->replies);
  }
  for (auto& [id, response] : replies) {
    const auto found = connections_.find(id);
    if (found == connections_.end()) continue;  // it left, or its time was up
    if (found->second->state != Connection::State::kWaiting) continue;
    Answer(found->second.get(), std::move(response));
  }
}

void HttpServer::Answer(Connection* connection, HttpResponse response) {
  if (response.pieces && !connection->takes_chunks) {
    response.body.clear();
    while (response.pieces(&response.body)) {
    }
    response.pieces = nullptr;
  }
  const std::string length =
      response.pieces ? "Transfer-Encoding: chunked\r\n"
                      : "Content-Length: " + std::to_string(response.body.size()) + "\r\n";
  std::string& out = connection->out;
  out = "HTTP/1.1 " + std::to_string(response.status) + " ";
  out += StatusText(response.status);
  out += "\r\nContent-Type: " + response.content_type + "\r\n" + length + response.headers +
         "Connection: " + (connection->close_after ? "close" : "keep-alive") + "\r\n\r\n";
  if (!connection->head_only && response.pieces) {
    connection->pieces = std::move(response.pieces);
    TakePiece(connection);
  } else if (!connection->head_only) {
    out += response.body;
  }
  connection->sent = 0;
  connection->state = Connection::State::kWriting;
  Write(connection);
}

void HttpServer::Refuse(Connection* connection, int status, const std::string& why) {
  HttpResponse response;
  response.status = status;
  response.body = why + "\n";
  connection->close_after = true;
  Answer(connection, std::move(response));
}

void HttpServer::TakePiece(Connection* connection) {
  std::string& out = connection->out;
  const size_t start = out.size();
  out += ChunkHead(0);
  const size_t begin = out.size();
  const bool more = connection->pieces(&out);
  if (out.size() == begin) {
    out.resize(start);  // an empty chunk would be the last
  } else {
    out.replace(start, begin - start, ChunkHead(out.size() - begin));
    out += "\r\n";
  }
  if (more) return;
  out += kLastChunk;
  connection->pieces = nullptr;
}

void HttpServer::Write(Connection* connection) {
  const std::string& out = connection->out;
  while (connection->sent < out.size()) {
    const ssize_t sent = send(connection->fd, out.data() + connection->sent,
                              out.size() - connection->sent, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) return Watch(*connection, EPOLLOUT);
    if (sent <= 0) return Close(connection->id);
    connection->sent += static_cast<size_t>(sent);
  }
  if (!connection->pieces) return Finish(connection);
  connection->out.clear();
  connection->sent = 0;
  TakePiece(connection);
  Watch(*connection, EPOLLOUT);  // and whoever else wants something first
}

// The answer is sent: on to the next request, or to the end.
void HttpServer::Finish(Connection* connection) {
  connection->since = Clock::now();
  connection->out = {};
  if (connection->close_after) {
    connection->state = Connection::State::kEnding;
    connection->deadline = connection->since + kLinger;
    shutdown(connection->fd, SHUT_WR);
    return Watch(*connection, EPOLLIN);
  }
  connection->state = Connection::State::kReading;
  const bool more = !connection->in.empty();
  connection->deadline = connection->since + (more ? limits_.request_time : limits_.idle_time);
  more ? ServeBuffered(connection) : Watch(*connection, EPOLLIN);
}

// Ends what took too long, with a word where the client may still read it.
void HttpServer::EndLate() {
  const auto now = Clock::now();
  std::vector<Connection*> late;
  for (const auto& [id, connection] : connections_) {
    if (now >= connection->deadline) late.push_back(connection.get());
  }
  for (Connection* connection : late) {
    const bool reading = connection->state == Connection::State::kReading;
    if (connection->state == Connection::State::kWaiting) {
      Refuse(connection, 503, "no answer in time");
    } else if (reading && !connection->in.empty()) {
      Refuse(connection, 408, "the request took too long");
    } else {
      Close(connection->id);
    }
  }
}

void HttpServer::Watch(const Connection& connection, uint32_t events) const {
  epoll_event event{};
  event.events = events;
  event.data.u64 = connection.id;
  epoll_ctl(epoll_, EPOLL_CTL_MOD, connection.fd, &event);
}

void HttpServer::Close(uint64_t id) {
  const auto found = connections_.find(id);
  close(found->second->fd);
  connections_.erase(found);
  open_ = static_cast<int64_t>(connections_.size());
}

}  // namespace denoised
