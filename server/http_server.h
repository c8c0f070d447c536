// A small HTTP/1.x server: one thread, epoll, no thread a connection.
//
// Written here because the packaged ones (cpp-httplib, civetweb) give a thread to each connection:
// a handful of idle keep-alive clients then silence the health page. Here an idle connection costs
// a descriptor, the longest idle one makes room for a new one (else the request that drags
// longest), and a request has a total time from its first byte to the last byte of its answer,
// however slowly the client reads or writes. Requests have no bodies yet; a face that needs them
// reads them in Connection's kReading state.
#ifndef DENOISED_SERVER_HTTP_SERVER_H_
#define DENOISED_SERVER_HTTP_SERVER_H_

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "server/http_parser.h"
#include "server/listener.h"

namespace denoised {

// A body whose length is not known ahead: appends its next piece; false: that was the last. Runs on
// the server's thread, as the client takes what came before where it knows chunks, else at once;
// must not block.
using HttpPieces = std::function<bool(std::string*)>;

struct HttpResponse {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
  HttpPieces pieces;         // set: instead of `body`
  std::string headers = "";  // further ones, each "Name: value\r\n"
};

// Takes the answer: exactly once, from any thread, at any later time.
using HttpReply = std::function<void(HttpResponse)>;
// Answers a request. Runs on the server's thread and must not block.
using HttpHandler = std::function<void(const HttpRequest&, HttpReply)>;

class HttpServer {
 public:
  struct Limits {
    int64_t max_connections = 256;
    std::chrono::milliseconds request_time{10000};
    std::chrono::milliseconds idle_time{60000};
  };

  // Serves until it is destroyed. `listener` is borrowed and outlives the server.
  HttpServer(const Listener* listener, const Limits& limits, HttpHandler handler);
  ~HttpServer();
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  // Any thread. Connections that are open now; those closed to make room for others, or refused.
  int64_t open() const { return open_; }
  int64_t refused() const { return refused_; }

 private:
  struct Connection;
  struct Mailbox;  // answers on their way to the thread; outlives the server

  void Run();
  void Wait(int timeout_ms);
  void AcceptAll(int listening);
  bool MakeRoom();
  void Serve(Connection* connection, uint32_t events);
  void Read(Connection* connection);
  void ServeBuffered(Connection* connection);
  void Answer(Connection* connection, HttpResponse response);
  void Refuse(Connection* connection, int status, const std::string& why);
  static void TakePiece(Connection* connection);
  void Write(Connection* connection);
  void Finish(Connection* connection);
  void DeliverReplies();
  void EndLate();
  void Watch(const Connection& connection, uint32_t events) const;
  void Close(uint64_t id);

  const Listener* const listener_;
  const Limits limits_;
  const HttpHandler handler_;
  const std::shared_ptr<Mailbox> mailbox_;
  const int epoll_;
  std::map<uint64_t, std::unique_ptr<Connection>> connections_;  // thread_ only, by id
  uint64_t last_id_ = 0;                                         // thread_ only
  std::atomic<int64_t> open_{0}, refused_{0};
  std::atomic<bool> stopping_{false};
  std::thread thread_;  // last: it uses the others
};

}  // namespace denoised

#endif  // DENOISED_SERVER_HTTP_SERVER_H_
