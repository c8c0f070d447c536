// The HTTP server over real sockets: idle, slow, rude and many clients.
#include "server/http_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "tests/eventually.h"

namespace denoised {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// A client that says exactly what it is told to.
class RawClient {
 public:
  explicit RawClient(int port, int receive_buffer = 0) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    if (receive_buffer > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  ~RawClient() { close(fd_); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  void Send(const std::string& bytes) const { send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
  void EndSending() const { shutdown(fd_, SHUT_WR); }
  // What comes until `stop` was read or the server ends the connection.
  std::string ReadUntil(const std::string& stop) const {
    std::string text;
    std::array<char, 4096> block;
    size_t looked = 0;
    while (stop.empty() || text.find(stop, looked) == std::string::npos) {
      looked = text.size() - std::min(text.size(), stop.size());
      pollfd ready{fd_, POLLIN, 0};
      if (poll(&ready, 1, 20000) != 1) return text + "(nothing for 20 s)";
      const ssize_t got = recv(fd_, block.data(), block.size(), 0);
      if (got <= 0) return text + "(end)";
      text.append(block.data(), static_cast<size_t>(got));
    }
    return text;
  }
  std::string ReadAll() const { return ReadUntil(""); }
  std::string Get(const std::string& path) const {
    Send("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n");
    return ReadUntil("<" + path + ">");
  }

 private:
  const int fd_;
};

class HttpServerTest : public testing::Test {
 protected:
  void Serve(const HttpServer::Limits& limits, HttpHandler handler) {
    server_ = std::make_unique<HttpServer>(&listener_, limits, std::move(handler));
  }
  // Answers with the path in brackets.
  void ServeEcho(const HttpServer::Limits& limits = {}) {
    Serve(limits, [](const HttpRequest& request, const HttpReply& reply) {
      HttpResponse response;
      response.body = "<" + request.path + ">";
      reply(response);
    });
  }

  Listener listener_{"http_listen", {"127.0.0.1", 0}};
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AConnectionServesOneRequestAfterTheOther) {
  ServeEcho();
  const RawClient client(listener_.port());
  EXPECT_THAT(client.Get("/a"), StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(client.Get("/b"), HasSubstr("Connection: keep-alive\r\n"));
  client.Send(
      "GET /c HTTP/1.1\r\n\r\nGET /d HTTP/1.1\r\n\r\nHEAD /e HTTP/1.1\r\n\r\n"
      "GET /f HTTP/1.1\r\nConnection: close\r\n\r\nGET /g HTTP/1.1\r\n\r\n");
  const std::string text = client.ReadAll();
  EXPECT_THAT(text, HasSubstr("</c>"));
  EXPECT_THAT(text, HasSubstr("</d>"));
  EXPECT_THAT(text, HasSubstr("Content-Length: 4\r\n")) << "HEAD says how long";
  EXPECT_THAT(text, testing::Not(HasSubstr("</e>")));
  EXPECT_THAT(text, HasSubstr("</f>(end)")) << "nothing after a close";
}

TEST_F(HttpServerTest, ARequestMayArriveByteByByte) {
  ServeEcho();
  const RawClient client(listener_.port());
  for (const char c : std::string("GET /slow HTTP/1.1\r\n\r\n")) client.Send(std::string(1, c));
  EXPECT_THAT(client.ReadUntil("</slow>"), HasSubstr("200 OK"));
}

TEST_F(HttpServerTest, IdleConnectionsGiveWayToNewOnes) {
  HttpServer::Limits limits;
  limits.max_connections = 8;
  ServeEcho(limits);
  std::vector<std::unique_ptr<RawClient>> idle;
  for (int i = 0; i < 50; ++i) {
    idle.push_back(std::make_unique<RawClient>(listener_.port()));
    if (i % 2 != 0) continue;
    EXPECT_THAT(idle.back()->Get("/kept"), HasSubstr("200 OK"));
  }
  for (int i = 0; i < 20; ++i) {
    const RawClient probe(listener_.port());
    EXPECT_THAT(probe.Get("/healthz"), HasSubstr("200 OK"));
  }
  EXPECT_LE(server_->open(), 8);
  EXPECT_GT(server_->refused(), 0);
  EXPECT_THAT(idle.front()->ReadAll(), HasSubstr("(end)"));
}

TEST_F(HttpServerTest, RequestsThatDragGiveWayBeforeThoseWhoHaveJustCome) {
  HttpServer::Limits limits;
  limits.max_connections = 8;
  ServeEcho(limits);
  std::vector<std::unique_ptr<RawClient>> dragging, come;
  for (int i = 0; i < 8; ++i) {
    dragging.push_back(std::make_unique<RawClient>(listener_.port()));
    EXPECT_THAT(dragging.back()->Get("/kept"), HasSubstr("200 OK"));
    dragging.back()->Send("GET / HTTP/1.1\r\nHost:");
  }
  std::this_thread::sleep_for(milliseconds(1100));
  for (int i = 0; i < 4; ++i) come.push_back(std::make_unique<RawClient>(listener_.port()));
  for (const auto& client : come) EXPECT_THAT(client->Get("/healthz"), HasSubstr("200 OK"));
  EXPECT_EQ(dragging.front()->ReadAll(), "(end)");
}

TEST_F(HttpServerTest, WhoIsIdleGivesWayBeforeARequestThatDrags) {
  HttpServer::Limits limits;
  limits.max_connections = 2;
  ServeEcho(limits);
  const RawClient dragging(listener_.port()), idle(listener_.port());
  EXPECT_THAT(dragging.Get("/kept"), HasSubstr("200 OK"));
  dragging.Send("GET /late HTTP/1.1\r\nHost:");
  EXPECT_THAT(idle.Get("/kept"), HasSubstr("200 OK"));
  std::this_thread::sleep_for(milliseconds(1100));
  EXPECT_THAT(RawClient(listener_.port()).Get("/healthz"), HasSubstr("200 OK"));
  EXPECT_EQ(idle.ReadAll(), "(end)");
  dragging.Send(" x\r\n\r\n");
  EXPECT_THAT(dragging.ReadUntil("</late>"), HasSubstr("200 OK"));
}

TEST_F(HttpServerTest, ARequestThatNeverEndsIsEnded) {
  HttpServer::Limits limits;
  limits.request_time = milliseconds(2000);
  ServeEcho(limits);
  const RawClient slow(listener_.port());
  slow.Send("GET / HTTP/1.1\r\nHost:");
  const RawClient silent(listener_.port());
  EXPECT_THAT(slow.ReadAll(), StartsWith("HTTP/1.1 408 "));
  EXPECT_EQ(silent.ReadAll(), "(end)");
}

TEST_F(HttpServerTest, AnIdleConnectionIsClosedAfterItsTime) {
  HttpServer::Limits limits;
  limits.idle_time = milliseconds(300);
  ServeEcho(limits);
  const RawClient client(listener_.port());
  client.Get("/a");
  EXPECT_EQ(client.ReadAll(), "(end)");
}

TEST_F(HttpServerTest, AnAnswerMayComeLaterFromElsewhereOrNotAtAll) {
  HttpServer::Limits limits;
  limits.request_time = milliseconds(2000);
  std::mutex mutex;
  std::vector<HttpReply> replies;
  Serve(limits, [&](const HttpRequest&, HttpReply reply) {
    std::lock_guard lock(mutex);
    replies.push_back(std::move(reply));
  });
  const RawClient client(listener_.port());
  client.Send("GET / HTTP/1.1\r\n\r\n");
  EXPECT_THAT(client.ReadAll(), StartsWith("HTTP/1.1 503 ")) << "no answer came";
  std::lock_guard lock(mutex);
  ASSERT_EQ(replies.size(), 1u);
  replies[0](HttpResponse());  // too late: nobody is there
  server_.reset();
  replies[0](HttpResponse());  // not even the server
}

TEST_F(HttpServerTest, ALargeAnswerWaitsForASlowReaderAndNotForEver) {
  HttpServer::Limits limits;
  limits.request_time = milliseconds(3000);
  const std::string large(8 << 20, 'x');
  Serve(limits, [&](const HttpRequest& request, const HttpReply& reply) {
    HttpResponse response;
    response.body = request.path == "/large" ? large + "<end>" : "small<end>";
    reply(response);
  });
  const RawClient reader(listener_.port()), stuck(listener_.port(), 4096);
  stuck.Send("GET /large HTTP/1.1\r\n\r\n");
  reader.Send("GET /large HTTP/1.1\r\n\r\n");
  EXPECT_GT(reader.ReadUntil("<end>").size(), large.size());
  EXPECT_TRUE(Eventually([&] { return server_->open() == 1; })) << "who reads nothing is let go";
}

TEST_F(HttpServerTest, AnAnswerInPiecesSaysItsLengthAsItGoes) {
  Serve({}, [](const HttpRequest&, const HttpReply& reply) {
    HttpResponse response;
    response.pieces = [left = std::vector<std::string>{"the last", "", std::string(20, 'x')}](
                          std::string* piece) mutable {
      *piece += left.back();
      left.pop_back();
      return !left.empty();
    };
    reply(response);
  });
  const RawClient client(listener_.port()), old(listener_.port());
  client.Send(
      "GET / HTTP/1.1\r\n\r\nHEAD / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nConnection: close\r\n\r\n");
  const std::string head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n";
  const std::string chunks =
      "00000014\r\n" + std::string(20, 'x') + "\r\n00000008\r\nthe last\r\n0\r\n\r\n";
  const std::string kept = "Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n";
  EXPECT_EQ(client.ReadAll(), head + kept + chunks + head + kept + head +
                                  "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" +
                                  chunks + "(end)");
  old.Send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_EQ(old.ReadUntil("the last"), head +
                                           "Content-Length: 28\r\nConnection: keep-alive\r\n\r\n" +
                                           std::string(20, 'x') + "the last")
      << "it knows no chunks, and must not take a part for the whole";
}

TEST_F(HttpServerTest, PiecesAreMadeAsTheClientTakesThemAndBesideOthers) {
  constexpr int kPieces = 160;  // of 64 KiB: more than any socket holds
  std::atomic<int> made{0};
  const auto life = std::make_shared<int>();
  Serve({},
        [&, owner = std::weak_ptr<int>(life)](const HttpRequest& request, const HttpReply& reply) {
          HttpResponse response;
          response.body = "<" + request.path + ">";
          if (request.path == "/long") {
            response.pieces = [&made, life = owner.lock()](std::string* piece) {
              piece->append(64 << 10, 'x');
              return ++made % kPieces != 0;
            };
          }
          reply(response);
        });
  const RawClient reader(listener_.port());
  {
    const RawClient stuck(listener_.port(), 4096);
    stuck.Send("GET /long HTTP/1.1\r\n\r\n");
    EXPECT_THAT(stuck.ReadUntil("xxx"), HasSubstr("chunked"));
    EXPECT_THAT(reader.Get("/small"), HasSubstr("Content-Length: 8\r\n"));
    EXPECT_LT(made, kPieces) << "nobody took them";
    EXPECT_GT(life.use_count(), 1);
  }
  EXPECT_TRUE(Eventually([&] { return life.use_count() == 1; })) << "who left wants no more of it";
  made = 0;
  reader.Send("GET /long HTTP/1.1\r\n\r\n");
  EXPECT_GT(reader.ReadUntil("\r\n0\r\n\r\n").size(), size_t{kPieces} * (64 << 10));
  const RawClient old(listener_.port());
  old.Send("GET /long HTTP/1.0\r\n\r\n");
  const std::string whole = old.ReadAll();
  EXPECT_THAT(whole.substr(0, 200),
              HasSubstr("Content-Length: " + std::to_string(kPieces * (64 << 10)) + "\r\n"));
  EXPECT_GT(whole.size(), size_t{kPieces} * (64 << 10));
  EXPECT_THAT(reader.Get("/small"), HasSubstr("</small>"));
}

TEST_F(HttpServerTest, AClientThatEndsItsSideStillGetsItsAnswer) {
  ServeEcho();
  const RawClient client(listener_.port());
  client.Send("GET /a HTTP/1.1\r\n\r\n");
  client.EndSending();
  EXPECT_THAT(client.ReadAll(), HasSubstr("</a>(end)"));
}

TEST_F(HttpServerTest, WhatCannotBeUnderstoodIsRefusedAndTheConnectionEnded) {
  ServeEcho();
  for (const char* bytes : {"\x16\x03\x01\x02 TLS\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                            "GET / HTTP/1.1\r\nbad header\r\n\r\n"}) {
    const RawClient client(listener_.port());
    client.Send(bytes);
    const std::string answer = client.ReadAll();
    EXPECT_THAT(answer, StartsWith("HTTP/1.1 ")) << bytes;
    EXPECT_THAT(answer, HasSubstr("Connection: close\r\n"));
    EXPECT_THAT(answer, HasSubstr("(end)"));
  }
}

TEST_F(HttpServerTest, ClientsThatVanishLeaveNothingBehind) {
  ServeEcho();
  for (int i = 0; i < 100; ++i) {
    const RawClient client(listener_.port());
    if (i % 3 > 0) client.Send(i % 3 == 1 ? "GET /a HT" : "GET /a HTTP/1.1\r\n\r\n");
  }
  EXPECT_TRUE(Eventually([&] { return server_->open() == 0; }));
}

}  // namespace
}  // namespace denoised
