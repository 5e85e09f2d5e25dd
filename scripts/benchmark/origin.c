/* An application to balance: tens of thousands of requests a second in one thread, so that it is never what is measured.
 *
 *   origin --listen 127.0.0.1:PORT --name blue
 *
 * It prints "ready" once it listens, and ends with SIGTERM, or when its stdin is a pipe and that ends.
 *
 *   GET /                               200, `X-Color: NAME`, the body "NAME\n"; so does every other path
 *   GET /health                         200, "ok\n"
 *   GET /stream?seconds=5&every_ms=50   chunks "NAME 0\n", "NAME 1\n", ... and the end of the chunks (HTTP/1.0: of the
 *                                       connection)
 *   GET /ws                             a WebSocket (RFC 6455) that answers each text frame with "NAME:" before it
 *
 *   GET /.mood?errors=20&delay_ms=5&hang=1   from now on so many of a thousand requests get a 500, all take so long, or no
 *                                       answer ever comes; what is not named is 0. /health stays as it is: it lies
 *
 * Requests have no body. Connections are kept unless the request says `Connection: close` or is HTTP/1.0. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { IN_MAX = 8192, OUT_MAX = 65536, PAYLOAD_MAX = 4096, EVENTS = 256 };

struct conn {
  int fd;
  int is_ws, is_chunked, ends;        /* ends: close once everything is written */
  const char *late;                   /* an answer that waits among the streams */
  int is_blocked;                     /* the kernel takes no more for now */
  size_t in_len, out_len;
  char *out;                          /* what the kernel did not take, OUT_MAX long, or NULL */
  int64_t every_ns, next_ns;          /* of a stream */
  uint32_t chunk, chunks;             /* of a stream: those written, all; chunks is 0 otherwise */
  struct conn *next, *prev;           /* among the streams */
  struct conn *next_dead;
  char in[IN_MAX];
};

static const char *name;
static char plain_keep[512], plain_close[512], health_keep[512], health_close[512], bad_keep[512], bad_close[512];
static int mood_errors, mood_hangs;
static int64_t mood_delay_ns;
static int epoll;
static struct conn *streams, *dead;

static int64_t now_ns(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void fail(const char *what) {
  fprintf(stderr, "origin: %s: %s\n", what, strerror(errno));
  exit(1);
}

/* Connections */

static void leave_streams(struct conn *c) {
  if (!c->chunks) return;
  if (c->prev) c->prev->next = c->next;
  else streams = c->next;
  if (c->next) c->next->prev = c->prev;
  c->chunks = 0;
}

/* Freed after the turn: another event of it may be waiting in the same batch. */
static void drop(struct conn *c) {
  if (c->fd < 0) return;
  leave_streams(c);
  close(c->fd);
  c->fd = -1;
  c->next_dead = dead;
  dead = c;
}

static void free_dead(void) {
  while (dead) {
    struct conn *c = dead;
    dead = c->next_dead;
    free(c->out);
    free(c);
  }
}

static void watch(struct conn *c, int operation) {
  struct epoll_event event = {.events = EPOLLIN | (c->is_blocked ? EPOLLOUT : 0), .data.ptr = c};
  if (epoll_ctl(epoll, operation, c->fd, &event)) fail("epoll_ctl");
}

/* Write now, or keep what the kernel does not take. A client that reads too slowly is dropped. */
static void put(struct conn *c, const char *data, size_t length) {
  if (c->fd < 0) return;
  if (!c->out_len) {
    ssize_t written = send(c->fd, data, length, MSG_NOSIGNAL);
    if (written < 0 && errno != EAGAIN) {
      drop(c);
      return;
    }
    if (written > 0) data += written, length -= (size_t)written;
    if (!length) return;
    if (!c->out && !(c->out = malloc(OUT_MAX))) fail("malloc");
    c->is_blocked = 1;
    watch(c, EPOLL_CTL_MOD);
  }
  if (c->out_len + length > OUT_MAX) {
    drop(c);
    return;
  }
  memcpy(c->out + c->out_len, data, length);
  c->out_len += length;
}

static void drop_when_written(struct conn *c) {
  c->ends = 1;
  if (c->fd >= 0 && !c->out_len) drop(c);
}

static void put_rest(struct conn *c) {
  ssize_t written = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
  if (written < 0) {
    if (errno != EAGAIN) drop(c);
    return;
  }
  c->out_len -= (size_t)written;
  memmove(c->out, c->out + written, c->out_len);
  if (c->out_len) return;
  c->is_blocked = 0;
  if (c->ends) drop(c);
  else watch(c, EPOLL_CTL_MOD);
}

/* Streams */

static void put_chunk(struct conn *c, const char *data, size_t length) {
  char chunk[192];
  if (!c->is_chunked) {
    put(c, data, length);
    return;
  }
  int size = snprintf(chunk, sizeof chunk, "%zx\r\n%.*s\r\n", length, (int)length, data);
  put(c, chunk, (size_t)size);
}

static void end_stream(struct conn *c) {
  int ends = c->ends || !c->is_chunked;
  leave_streams(c);
  if (c->is_chunked) put(c, "0\r\n\r\n", 5);
  if (ends) drop_when_written(c);
}

static void advance(struct conn *c, int64_t now) {
  char line[96];
  if (c->late && c->next_ns <= now) {
    const char *text = c->late;
    c->late = NULL;
    leave_streams(c);
    put(c, text, strlen(text));
    if (c->ends) drop_when_written(c);
    return;
  }
  if (c->late) return;
  while (c->fd >= 0 && c->chunks && c->next_ns <= now) {
    if (c->chunk == c->chunks) {
      end_stream(c);
      return;
    }
    int length = snprintf(line, sizeof line, "%s %u\n", name, c->chunk++);
    c->next_ns += c->every_ns;
    put_chunk(c, line, (size_t)length);
  }
}

/* The milliseconds until a stream is due; -1 for ever. */
static int advance_streams(void) {
  int64_t now = now_ns(), first = INT64_MAX;
  for (struct conn *c = streams, *next; c; c = next) {
    next = c->next;
    advance(c, now);
    if (c->fd >= 0 && c->chunks && c->next_ns < first) first = c->next_ns;
  }
  return first == INT64_MAX ? -1 : (int)((first - now + 999999) / 1000000);
}

static double parameter(const char *path, const char *key, double otherwise) {
  const char *found = strstr(path, key);
  double value = found ? atof(found + strlen(key)) : otherwise;
  return value > 0 ? value : otherwise;
}

static void start_stream(struct conn *c, const char *path, int is_http11, int keeps) {
  char head[512];
  double every_ms = parameter(path, "every_ms=", 50), seconds = parameter(path, "seconds=", 5);
  c->is_chunked = is_http11;
  c->ends = 0;
  c->every_ns = (int64_t)(every_ms * 1e6);
  c->chunk = 0;
  c->chunks = (uint32_t)(seconds * 1000 / every_ms) + 1;
  c->next_ns = now_ns();
  c->prev = NULL;
  c->next = streams;
  if (streams) streams->prev = c;
  streams = c;
  int length = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nX-Color: %s\r\nContent-Type: text/plain\r\n%sConnection: %s\r\n\r\n",
                        name, is_http11 ? "Transfer-Encoding: chunked\r\n" : "", keeps ? "keep-alive" : "close");
  put(c, head, (size_t)length);
  c->ends = !keeps;
  if (c->fd >= 0) advance(c, c->next_ns);
}

/* WebSockets */

static uint32_t rotate(uint32_t value, int by) { return value << by | value >> (32 - by); }

static void sha1_block(uint32_t state[5], const uint8_t *block) {
  uint32_t w[80], a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
  for (int i = 0; i < 16; i++)
    w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
  for (int i = 16; i < 80; i++) w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
  for (int i = 0; i < 80; i++) {
    uint32_t f, k;
    if (i < 20) f = (b & c) | (~b & d), k = 0x5a827999;
    else if (i < 40) f = b ^ c ^ d, k = 0x6ed9eba1;
    else if (i < 60) f = (b & c) | (b & d) | (c & d), k = 0x8f1bbcdc;
    else f = b ^ c ^ d, k = 0xca62c1d6;
    uint32_t next = rotate(a, 5) + f + e + k + w[i];
    e = d, d = c, c = rotate(b, 30), b = a, a = next;
  }
  state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
}

/* FIPS 180-4, for texts up to 119 bytes. */
static void sha1(const char *text, uint8_t digest[20]) {
  uint32_t state[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
  uint8_t blocks[128] = {0};
  size_t length = strlen(text), all = length < 56 ? 64 : 128;
  memcpy(blocks, text, length);
  blocks[length] = 0x80;
  blocks[all - 1] = (uint8_t)(length * 8);
  blocks[all - 2] = (uint8_t)(length * 8 >> 8);
  for (size_t at = 0; at < all; at += 64) sha1_block(state, blocks + at);
  for (int i = 0; i < 20; i++) digest[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
}

/* Of 20 bytes: 28 characters. */
static void base64(const uint8_t digest[20], char out[29]) {
  static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  int at = 0;
  for (int i = 0; i < 21; i += 3) {
    uint32_t group = (uint32_t)digest[i] << 16 | (uint32_t)digest[i + 1] << 8 | (i + 2 < 20 ? digest[i + 2] : 0);
    for (int shift = 18; shift >= 0; shift -= 6) out[at++] = letters[group >> shift & 63];
  }
  out[27] = '=';
  out[28] = 0;
}

static void start_ws(struct conn *c, const char *key) {
  char text[120], accept[29], head[512];
  uint8_t digest[20];
  snprintf(text, sizeof text, "%.64s258EAFA5-E914-47DA-95CA-C5AB0DC85B11", key);
  sha1(text, digest);
  base64(digest, accept);
  int length = snprintf(head, sizeof head,
                        "HTTP/1.1 101 Switching Protocols\r\nX-Color: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Accept: %s\r\n\r\n", name, accept);
  c->is_ws = 1;
  put(c, head, (size_t)length);
}

static void put_frame(struct conn *c, int opcode, const char *prefix, const char *payload, size_t length) {
  uint8_t frame[PAYLOAD_MAX + 128];
  size_t before = strlen(prefix), all = before + length, at = 2;
  frame[0] = (uint8_t)(0x80 | opcode);
  frame[1] = (uint8_t)(all < 126 ? all : 126);
  if (all >= 126) frame[2] = (uint8_t)(all >> 8), frame[3] = (uint8_t)all, at = 4;
  memcpy(frame + at, prefix, before);
  memcpy(frame + at + before, payload, length);
  put(c, (char *)frame, at + all);
}

/* The bytes of the first frame, taken; 0 when it is not all there. */
static size_t take_frame(struct conn *c) {
  uint8_t *in = (uint8_t *)c->in;
  if (c->in_len < 6) return 0;
  size_t length = in[1] & 127, at = 2;
  char prefix[80];
  if (!(in[1] & 128) || length == 127) {
    drop(c);
    return 0;
  }
  if (length == 126) {
    if (c->in_len < 8) return 0;
    length = (size_t)in[2] << 8 | in[3];
    at = 4;
  }
  if (length > PAYLOAD_MAX) {
    drop(c);
    return 0;
  }
  if (c->in_len < at + 4 + length) return 0;
  uint8_t *mask = in + at, *payload = in + at + 4;
  for (size_t i = 0; i < length; i++) payload[i] ^= mask[i % 4];
  switch (in[0] & 15) {
    case 1:
      snprintf(prefix, sizeof prefix, "%s:", name);
      put_frame(c, 1, prefix, (char *)payload, length);
      break;
    case 8:
      put_frame(c, 8, "", (char *)payload, length);
      drop_when_written(c);
      break;
    case 9: put_frame(c, 10, "", (char *)payload, length); break;
    case 10: break;
    default: drop(c);
  }
  return at + 4 + length;
}

/* Requests */

/* The value of a field in the head, or "". */
static void field(const char *head, const char *key, char *value, size_t size) {
  size_t length = strlen(key);
  value[0] = 0;
  for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n")) {
    if (strncasecmp(line + 2, key, length) || line[2 + length] != ':') continue;
    const char *start = line + 3 + length, *end = strstr(start, "\r\n");
    while (*start == ' ') start++;
    snprintf(value, size, "%.*s", (int)((end ? end : start + strlen(start)) - start), start);
    return;
  }
}

/* Among the streams until it is due. */
static void answer_late(struct conn *c, const char *text, int keeps) {
  c->late = text;
  c->ends = !keeps;
  c->chunks = 1;
  c->next_ns = now_ns() + (mood_hangs ? 3600000000000LL : mood_delay_ns);
  c->prev = NULL;
  c->next = streams;
  if (streams) streams->prev = c;
  streams = c;
}

static int is_path(const char *path, const char *wanted) {
  size_t length = strlen(wanted);
  return !strncmp(path, wanted, length) && strchr(" ?", path[length]);
}

static void answer(struct conn *c, char *head) {
  char connection[64], value[96];
  char *path = strchr(head, ' ');
  if (!path) {
    drop(c);
    return;
  }
  path++;
  size_t length = strcspn(path, " \r");
  int is_http11 = !strncmp(path + length, " HTTP/1.1", 9);
  field(head, "Connection", connection, sizeof connection);
  int keeps = is_http11 ? strcasecmp(connection, "close") != 0 : !strcasecmp(connection, "keep-alive");
  if (is_path(path, "/stream")) {
    path[length] = 0;
    start_stream(c, path, is_http11, keeps && is_http11);
    return;
  }
  field(head, "Upgrade", value, sizeof value);
  if (is_path(path, "/ws") && !strcasecmp(value, "websocket")) {
    field(head, "Sec-WebSocket-Key", value, sizeof value);
    start_ws(c, value);
    return;
  }
  const char *text = keeps ? plain_keep : plain_close;
  if (is_path(path, "/.mood")) {
    path[length] = 0;
    mood_errors = (int)parameter(path, "errors=", 0);
    mood_delay_ns = (int64_t)(parameter(path, "delay_ms=", 0) * 1e6);
    mood_hangs = parameter(path, "hang=", 0) > 0;
    text = keeps ? health_keep : health_close;
  } else if (is_path(path, "/health")) {
    text = keeps ? health_keep : health_close;
  } else {
    if (mood_errors && rand() % 1000 < mood_errors) text = keeps ? bad_keep : bad_close;
    if (mood_hangs || mood_delay_ns) {
      answer_late(c, text, keeps);
      return;
    }
  }
  put(c, text, strlen(text));
  if (!keeps) drop_when_written(c);
}

/* The bytes of the first request, taken; 0 when it is not all there. */
static size_t take_request(struct conn *c) {
  c->in[c->in_len] = 0;
  char *end = strstr(c->in, "\r\n\r\n");
  if (!end) {
    if (c->in_len == IN_MAX - 1) drop(c);
    return 0;
  }
  *end = 0;
  answer(c, c->in);
  return (size_t)(end + 4 - c->in);
}

static void receive(struct conn *c) {
  ssize_t got = recv(c->fd, c->in + c->in_len, IN_MAX - 1 - c->in_len, 0);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) {
    drop(c);
    return;
  }
  c->in_len += (size_t)got;
  while (c->fd >= 0 && c->in_len && !c->chunks && !c->ends) {
    size_t taken = c->is_ws ? take_frame(c) : take_request(c);
    if (!taken) return;
    c->in_len -= taken;
    memmove(c->in, c->in + taken, c->in_len);
  }
}

static void accept_all(int listener) {
  for (;;) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), yes = 1;
    if (fd < 0) return;
    struct conn *c = malloc(sizeof *c);
    if (!c) fail("malloc");
    memset(c, 0, offsetof(struct conn, in));
    c->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    watch(c, EPOLL_CTL_ADD);
  }
}

/* The program */

static int listen_on(const char *address) {
  struct sockaddr_in at = {.sin_family = AF_INET};
  char host[64];
  const char *colon = strrchr(address, ':');
  int yes = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (listener < 0) fail("socket");
  snprintf(host, sizeof host, "%.*s", colon ? (int)(colon - address) : 0, address);
  if (!colon || inet_pton(AF_INET, host, &at.sin_addr) != 1) {
    errno = EINVAL;
    fail("--listen takes ADDRESS:PORT");
  }
  at.sin_port = htons((uint16_t)atoi(colon + 1));
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 4096)) fail(address);
  return listener;
}

static void prepare(char *text, size_t size, const char *body, const char *connection) {
  snprintf(text, size, "HTTP/1.1 200 OK\r\nX-Color: %s\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\nConnection: %s\r\n\r\n%s",
           name, strlen(body), connection, body);
}

static void serve(int listener) {
  static struct epoll_event events[EVENTS];
  static char for_listener, for_parent;
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = &for_listener};
  struct stat input;
  epoll = epoll_create1(EPOLL_CLOEXEC);
  if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event)) fail("epoll");
  event.data.ptr = &for_parent;
  if (!fstat(0, &input) && S_ISFIFO(input.st_mode) && epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event)) fail("epoll");
  for (;;) {
    int count = epoll_wait(epoll, events, EVENTS, advance_streams());
    if (count < 0 && errno != EINTR) fail("epoll_wait");
    for (int i = 0; i < count; i++) {
      struct conn *c = events[i].data.ptr;
      if ((char *)c == &for_parent) return;
      if ((char *)c == &for_listener) {
        accept_all(listener);
        continue;
      }
      if (c->fd >= 0 && c->out_len && events[i].events & EPOLLOUT) put_rest(c);
      if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
    }
    free_dead();
  }
}

int main(int argc, char **argv) {
  const char *address = NULL;
  char body[96];
  struct rlimit files;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!strcmp(argv[i], "--listen")) address = argv[i + 1];
    else if (!strcmp(argv[i], "--name")) name = argv[i + 1];
  }
  if (!address || !name || strlen(name) > 64 || argc != 5) {
    fprintf(stderr, "usage: origin --listen ADDRESS:PORT --name NAME\n");
    return 2;
  }
  if (!getrlimit(RLIMIT_NOFILE, &files)) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  snprintf(body, sizeof body, "%s\n", name);
  prepare(plain_keep, sizeof plain_keep, body, "keep-alive");
  prepare(plain_close, sizeof plain_close, body, "close");
  prepare(health_keep, sizeof health_keep, "ok\n", "keep-alive");
  prepare(health_close, sizeof health_close, "ok\n", "close");
  prepare(bad_keep, sizeof bad_keep, body, "keep-alive");
  prepare(bad_close, sizeof bad_close, body, "close");
  memcpy(bad_keep + 9, "500 NO", 6);
  memcpy(bad_close + 9, "500 NO", 6);
  int listener = listen_on(address);
  puts("ready");
  fflush(stdout);
  serve(listener);
  return 0;
}
