/* A load that is sent at a fixed pace whatever comes back, accounts for every request, and never retries.
 *
 *   load --target 127.0.0.1:PORT [--host NAME] [--path /] [--rate 4000] [--kept 32] [--new-share 0.5]
 *        [--streams 20] [--stream-seconds 5] [--websockets 20] [--ws-every-ms 100] [--timeout-ms 5000] [--duration 600]
 *
 * `rate` requests a second, of which the share `new-share` get a connection of their own and the others take turns on
 * `kept` connections; `streams` answers of /stream and `websockets` connections to /ws, all along.
 *
 * What counts as what:
 * - A request is sent when its first byte, or the connection made for it alone, is asked of the kernel.
 * - It is answered when a complete response with a status below 400 came. Everything else is lost, by kind: refused,
 *   reset, closed (the connection ended before the first byte of an answer), truncated (or in the middle of it), timeout,
 *   garbled (not HTTP, a head above 4,095 bytes, or bytes behind the answer), unreachable, no_port (this machine had no
 *   port left: the load's own limit, nothing was sent), http_502 and so on.
 * - A kept connection that was closed while idle is opened again: reopened, not lost. The kernel is asked right before the
 *   write; an end that arrives after it costs the request.
 * - Requests due while every kept connection was busy are sent late; past one second's worth they are skipped: never sent.
 * - A stream is broken when it ends without its last chunk, names two colors, leaves out or repeats a line, or is silent for
 *   the timeout. A WebSocket is broken when the other side closes it first, or an echo is wrong, of another color, or not
 *   there within the timeout. Those cut off by `stop` are started, and neither done nor broken. A broken one is replaced
 *   after 100 ms, a finished one at once.
 * - Everything belongs to the phase in which it happened; a request is sent in one and may be answered in the next, and is
 *   then late in neither.
 *
 * Latency is from sent to complete. `late` is how long after its time a request was sent: how well the pace was kept.
 *
 * Ports: a connection for one request asks for `Connection: close`, waits for the other side's end after the answer, and
 * is then closed with a reset (SO_LINGER 0), which can disturb nothing any more and leaves no TIME_WAIT on either side.
 * Only a server that has not closed 1 s after its answer costs a port for a while.
 *
 * Commands on stdin, each answered by a line of JSON:
 *   now                    {"at_ns"} of CLOCK_MONOTONIC, which is Python's time.monotonic_ns()
 *   switch OLD NEW [AT_NS] a phase begins, now or at a moment of the last 10 s: {"at_ns"}
 *   phase NAME [AT_NS]     the same without colors
 *   report                 everything so far
 *   stop                   send no more, let every request end, report, exit
 * The end of stdin ends it at once. After --duration (seconds) it stops by itself, with a last report. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000LL
#define SECOND 1000000000LL
#define LOOK_BACK (10 * SECOND)       /* how far back a phase may begin */
#define CLOSING_NS SECOND             /* how long the other side may take to close */
#define PAUSE_NS (100 * MS)           /* before a broken stream or WebSocket is replaced */

enum {
  HEAD_MAX = 4096, CONNS_MAX = 20000, SPARE_FILES = 32, EVENTS = 128, BURST = 64,
  COLORS_MAX = 8, COLOR_MAX = 32, NAME_MAX_ = 64, PHASES_MAX = 10000, FAILURES = 100,
  HISTOGRAM_SHIFT = 7, HISTOGRAM_BITS = 6, HISTOGRAM = 32 << HISTOGRAM_BITS, KINDS = 600,
};

enum what { KEPT, FRESH, STREAM, SOCKET };
static const char *const what_names[] = {"kept", "new", "stream", "websocket"};

enum kind { REFUSED, RESET, CLOSED, TRUNCATED, TIMEOUT, GARBLED, UNREACHABLE, NO_PORT, MIXED, NAMED_KINDS };
static const char *const kind_names[] = {"refused", "reset", "closed", "truncated", "timeout", "garbled", "unreachable", "no_port", "mixed"};

enum state { UNUSED, BUSY, IDLE, CLOSING };
enum reading { HEAD, LENGTH, CHUNK_SIZE, CHUNK_EXTENSION, CHUNK_DATA, CHUNK_END, TRAILER, UNTIL_END, UPGRADED, COMPLETE };

struct conn {
  int fd;
  uint32_t generation;                /* so that a late event of the one before does not hit this one */
  enum what what;
  enum state state;
  struct conn *next, *prev;           /* in its list */
  struct list *list;
  int64_t sent_ns, heard_ns;
  const char *request;                /* what is still to be written of it */
  size_t request_len;
  /* the answer */
  enum reading reading;
  size_t head_len;
  int status, color, closes, has_data;
  int64_t left;                       /* of the body, or of the chunk */
  int is_line_empty;                  /* of the trailer */
  /* streams and WebSockets */
  struct slot *slot;
  char line[64];
  size_t line_len;
  uint32_t lines, frames;             /* lines seen, frames sent */
  int is_echo_due, has_said_close;
  int64_t next_frame_ns, ends_ns;
  char text[256];                     /* its request */
  char head[HEAD_MAX];                /* the answer's head, then WebSocket frames */
};

struct list { struct conn *first, *last; int count; };

/* A place that always has a stream or a WebSocket. */
struct slot { enum what what; struct conn *conn; int64_t not_before_ns; double first_share; int has_begun; };

enum type { SENT, ANSWERED, LOST, REOPENED, SKIPPED, STREAM_STARTED, STREAM_DONE, STREAM_BROKEN, WS_OPENED, WS_DONE, WS_BROKEN, WS_FRAME, TYPES };
static const char *const type_names[] = {"sent", NULL, NULL, "reopened", "skipped", "streams_started", "streams_done", "streams_broken", "ws_opened", "ws_done", "ws_broken", "ws_frames"};

struct event { int64_t at_ns, sent_ns; uint8_t type, color; uint16_t kind; };

struct histogram { uint32_t counts[HISTOGRAM]; uint64_t count; int64_t max_ns; };

struct phase {
  char name[NAME_MAX_];
  int old, new;                       /* colors, or -1 */
  int64_t at_ns;
  uint64_t counts[TYPES], answered[COLORS_MAX], lost[KINDS], old_after;
  int64_t first_new_ns, last_old_ns, last_old_answered_ns;  /* after at_ns, or -1 */
  struct histogram latency, late;
};

struct pacer { enum what what; double interval_ns, next_ns; int is_blocked; };

struct failure { enum what what; int kind, color; int64_t at_ns, sent_ns; };

static struct { const char *target, *host, *path; double rate, new_share, stream_s, ws_every_ms, timeout_ms, duration_s; int kept, streams, websockets; }
    plan = {NULL, NULL, "/", 4000, 0.5, 5, 100, 5000, 600, 32, 20, 20};
static struct sockaddr_in target;
static char kept_request[512], fresh_request[512];
static int epoll, is_sending = 1;
static int64_t started_ns, timeout_ns;

static struct conn *conns;
static int conns_max, conns_used;
static struct list unused, idle, in_flight, closing;
static int kept;
static struct slot *slots;
static int slots_count;
static struct pacer pacers[2];

static char colors[COLORS_MAX][COLOR_MAX] = {"unknown"};
static int colors_count = 1;
static struct phase **phases;
static int phases_count, current;     /* current: the phase of the last event counted */
static struct event *ring;
static size_t ring_size, ring_first, ring_count;
static int64_t counted_until_ns;
static struct failure failures[FAILURES];
static uint64_t failures_count;

static int64_t now_ns(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec * SECOND + at.tv_nsec;
}

static void fail(const char *what) {
  fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void *allocate(size_t count, size_t size) {
  void *memory = calloc(count ? count : 1, size);
  if (!memory) fail("calloc");
  return memory;
}

/* Names go into JSON as they are. */
static void copy_name(char *to, size_t size, const char *from, size_t length) {
  size_t at = 0;
  for (; at < length && at + 1 < size; at++)
    to[at] = from[at] < ' ' || from[at] > '~' || strchr("\"\\", from[at]) ? '_' : from[at];
  to[at] = 0;
}

static int color_of(const char *text, size_t length) {
  char color[COLOR_MAX];
  copy_name(color, sizeof color, text, length);
  for (int i = 0; i < colors_count; i++)
    if (!strcmp(colors[i], color)) return i;
  if (colors_count == COLORS_MAX || !*color) return 0;
  strcpy(colors[colors_count], color);
  return colors_count++;
}

/* Counting. Events wait LOOK_BACK before they are counted, so that a phase can still begin before them. */

static int bucket_of(int64_t ns) {
  uint64_t value = (uint64_t)(ns < 0 ? 0 : ns) >> HISTOGRAM_SHIFT;
  if (value < 2u << HISTOGRAM_BITS) return (int)value;
  int shift = 63 - __builtin_clzll(value) - HISTOGRAM_BITS;
  int bucket = (shift << HISTOGRAM_BITS) + (int)(value >> shift);
  return bucket < HISTOGRAM ? bucket : HISTOGRAM - 1;
}

/* The middle of the bucket, which is at most 1/64 wide. */
static double bucket_ns(int bucket) {
  int shift = bucket < 2 << HISTOGRAM_BITS ? 0 : (bucket >> HISTOGRAM_BITS) - 1;
  double value = bucket - (shift << HISTOGRAM_BITS) + 0.5;
  return value * (double)(1ULL << (shift + HISTOGRAM_SHIFT));
}

static void measure(struct histogram *histogram, int64_t ns) {
  histogram->counts[bucket_of(ns)]++;
  histogram->count++;
  if (ns > histogram->max_ns) histogram->max_ns = ns;
}

static void merge(struct histogram *into, const struct histogram *from) {
  for (int i = 0; i < HISTOGRAM; i++) into->counts[i] += from->counts[i];
  into->count += from->count;
  if (from->max_ns > into->max_ns) into->max_ns = from->max_ns;
}

static double quantile_ns(const struct histogram *histogram, double share) {
  double left = share * (double)histogram->count;
  for (int i = 0; i < HISTOGRAM; i++) {
    left -= histogram->counts[i];
    if (left <= 0 && histogram->counts[i]) return bucket_ns(i) < (double)histogram->max_ns ? bucket_ns(i) : (double)histogram->max_ns;
  }
  return 0;
}

static void count_answer(struct phase *phase, const struct event *event) {
  int64_t at = event->at_ns - phase->at_ns, sent = event->sent_ns - phase->at_ns;
  phase->answered[event->color]++;
  measure(&phase->latency, event->at_ns - event->sent_ns);
  if (event->color == phase->new && phase->first_new_ns < 0) phase->first_new_ns = at;
  if (event->color != phase->old || sent < 0) return;
  phase->old_after++;
  if (sent > phase->last_old_ns) phase->last_old_ns = sent;
  if (at > phase->last_old_answered_ns) phase->last_old_answered_ns = at;
}

static void count(const struct event *event) {
  while (current + 1 < phases_count && phases[current + 1]->at_ns <= event->at_ns) current++;
  struct phase *phase = phases[current];
  phase->counts[event->type]++;
  if (event->type == ANSWERED) count_answer(phase, event);
  if (event->type == LOST) phase->lost[event->kind]++;
  if (event->type == SENT) measure(&phase->late, event->at_ns - event->sent_ns);  /* sent_ns: when it was due */
}

static void count_until(int64_t ns) {
  while (ring_count && ring[ring_first].at_ns <= ns) {
    count(&ring[ring_first]);
    ring_first = (ring_first + 1) % ring_size;
    ring_count--;
  }
  if (ns > counted_until_ns) counted_until_ns = ns;
}

static void grow_ring(void) {
  struct event *larger = allocate(ring_size ? 2 * ring_size : 65536, sizeof *larger);
  for (size_t i = 0; i < ring_count; i++) larger[i] = ring[(ring_first + i) % ring_size];
  free(ring);
  ring = larger;
  ring_first = 0;
  ring_size = ring_size ? 2 * ring_size : 65536;
}

static void note(enum type type, int64_t at_ns, int64_t sent_ns, int color, int kind) {
  if (ring_count == ring_size) grow_ring();
  ring[(ring_first + ring_count++) % ring_size] =
      (struct event){at_ns, sent_ns, (uint8_t)type, (uint8_t)color, (uint16_t)kind};
}

static void note_failure(const struct conn *c, int kind, int64_t at_ns) {
  failures[failures_count++ % FAILURES] = (struct failure){c->what, kind, c->color, at_ns, c->sent_ns};
}

/* NULL, or why not. */
static const char *begin_phase(const char *name, int old, int new, int64_t at_ns) {
  if (phases_count == PHASES_MAX) return "too many phases";
  if (phases_count && at_ns <= phases[phases_count - 1]->at_ns) return "the moment is not after the last phase's";
  if (phases_count && at_ns <= counted_until_ns) return "the moment is before the last report, or more than 10 s ago";
  if (at_ns > now_ns()) return "the moment is in the future";
  struct phase *phase = allocate(1, sizeof *phase);
  copy_name(phase->name, sizeof phase->name, name, strlen(name));
  phase->old = old, phase->new = new, phase->at_ns = at_ns;
  phase->first_new_ns = phase->last_old_ns = phase->last_old_answered_ns = -1;
  phases[phases_count++] = phase;
  return NULL;
}

/* Connections */

static void leave(struct conn *c) {
  struct list *list = c->list;
  if (!list) return;
  *(c->prev ? &c->prev->next : &list->first) = c->next;
  *(c->next ? &c->next->prev : &list->last) = c->prev;
  c->next = c->prev = NULL;
  c->list = NULL;
  list->count--;
}

static void join(struct conn *c, struct list *list) {
  leave(c);
  c->list = list;
  c->prev = list->last;
  *(list->last ? &list->last->next : &list->first) = c;
  list->last = c;
  list->count++;
}

/* With `reset` the connection is forgotten on both sides at once. */
static void drop(struct conn *c, int reset) {
  struct linger linger = {1, 0};
  if (reset) setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
  close(c->fd);
  if (c->what == KEPT && c->state != CLOSING) kept--;
  c->generation++;
  c->state = UNUSED;
  join(c, &unused);
}

/* Everything came: wait for the other side's end. */
static void finish(struct conn *c, int64_t now) {
  if (c->what == KEPT) kept--;
  c->state = CLOSING;
  c->heard_ns = now;
  join(c, &closing);
}

/* Make room for an answer. */
static void expect(struct conn *c) {
  c->reading = HEAD;
  c->head_len = c->line_len = 0;
  c->status = c->color = c->closes = c->has_data = 0;
  c->lines = c->frames = 0;
  c->is_echo_due = c->has_said_close = 0;
}

static void watch(struct conn *c, int operation, uint32_t events) {
  struct epoll_event event = {.events = events, .data.u64 = (uint64_t)c->generation << 32 | (uint32_t)(c - conns)};
  if (epoll_ctl(epoll, operation, c->fd, &event)) fail("epoll_ctl");
}

/* A socket to be connected, or NULL when there are as many as there may be. */
static struct conn *take_conn(enum what what) {
  int fd, yes = 1;
  if (!unused.first && conns_used == conns_max) return NULL;
  if ((fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) < 0) return NULL;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
  struct conn *c = unused.first ? unused.first : &conns[conns_used++];
  leave(c);
  c->fd = fd;
  c->what = what;
  c->state = BUSY;
  c->slot = NULL;
  if (what == KEPT) kept++;
  expect(c);
  return c;
}

static int kind_of(int error) {
  switch (error) {
    case ECONNREFUSED: return REFUSED;
    case ECONNRESET:
    case EPIPE: return RESET;
    case ETIMEDOUT: return TIMEOUT;
    case EADDRNOTAVAIL: return NO_PORT;
    default: return UNREACHABLE;
  }
}

/* It did not get what it asked for. */
static void lose(struct conn *c, int kind) {
  int64_t now = now_ns();
  if (c->what == KEPT || c->what == FRESH) {
    note(LOST, now, c->sent_ns, c->color, kind);
  } else {
    note(c->what == STREAM ? STREAM_BROKEN : WS_BROKEN, now, c->sent_ns, c->color, kind);
    c->slot->conn = NULL;
    c->slot->not_before_ns = now + PAUSE_NS;
  }
  note_failure(c, kind, now);
  drop(c, 0);
}

static void write_request(struct conn *c) {
  ssize_t written = send(c->fd, c->request, c->request_len, MSG_NOSIGNAL);
  if (written < 0 && errno != EAGAIN) {
    lose(c, kind_of(errno));
    return;
  }
  if (written > 0) c->request += written, c->request_len -= (size_t)written;
}

/* The request goes along with the connection where the kernel lets it, which is so on loopback. */
static void connect_and_write(struct conn *c) {
  if (connect(c->fd, (struct sockaddr *)&target, sizeof target) && errno != EINPROGRESS) {
    lose(c, kind_of(errno));
    return;
  }
  uint32_t generation = c->generation;
  write_request(c);
  if (c->generation == generation) watch(c, EPOLL_CTL_ADD, EPOLLIN | EPOLLRDHUP | (c->request_len ? EPOLLOUT : 0));
}

/* Sending requests */

static void begin(struct conn *c, const char *request, int64_t due_ns) {
  c->request = request;
  c->request_len = strlen(request);
  c->sent_ns = now_ns();
  note(SENT, c->sent_ns, due_ns, 0, 0);
  join(c, &in_flight);
}

static int send_fresh(int64_t due_ns) {
  struct conn *c = take_conn(FRESH);
  if (!c) return 0;
  begin(c, fresh_request, due_ns);
  connect_and_write(c);
  return 1;
}

static int is_closed_by_peer(const struct conn *c) {
  char byte;
  return recv(c->fd, &byte, 1, MSG_PEEK) >= 0 || errno != EAGAIN;
}

static void reopen(struct conn *c) {
  note(REOPENED, now_ns(), 0, 0, 0);
  drop(c, 0);
}

static int send_kept(int64_t due_ns) {
  struct conn *c;
  if (kept == plan.kept && idle.first && is_closed_by_peer(idle.first)) reopen(idle.first);
  if (kept < plan.kept) {
    if (!(c = take_conn(KEPT))) return 0;
    begin(c, kept_request, due_ns);
    connect_and_write(c);
    return 1;
  }
  if (!(c = idle.first)) return 0;
  c->state = BUSY;
  expect(c);
  begin(c, kept_request, due_ns);
  uint32_t generation = c->generation;
  write_request(c);
  if (c->generation == generation && c->request_len) watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLRDHUP | EPOLLOUT);
  return 1;
}

static void pace(struct pacer *pacer) {
  int64_t now = now_ns();
  while ((double)now - pacer->next_ns > (double)SECOND && (double)now - pacer->next_ns > pacer->interval_ns) {
    note(SKIPPED, now, 0, 0, 0);
    pacer->next_ns += pacer->interval_ns;
  }
  pacer->is_blocked = 0;
  for (int i = 0; i < BURST && pacer->next_ns <= (double)now; i++) {
    int64_t due_ns = (int64_t)pacer->next_ns;
    if (!(pacer->what == KEPT ? send_kept(due_ns) : send_fresh(due_ns))) {
      pacer->is_blocked = 1;
      return;
    }
    pacer->next_ns += pacer->interval_ns;
    now = now_ns();
  }
}

/* Streams and WebSockets */

static void start(struct slot *slot) {
  struct conn *c = take_conn(slot->what);
  if (!c) return;
  int64_t now = now_ns();
  double seconds = plan.stream_s * (slot->has_begun ? 1 : slot->first_share);
  if (slot->what == STREAM)
    snprintf(c->text, sizeof c->text, "GET /stream?seconds=%.3f&every_ms=50 HTTP/1.1\r\nHost: %.64s\r\nConnection: close\r\n\r\n", seconds, plan.host);
  else
    snprintf(c->text, sizeof c->text,
             "GET /ws HTTP/1.1\r\nHost: %.64s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", plan.host);
  slot->conn = c;
  slot->has_begun = 1;
  c->slot = slot;
  c->request = c->text;
  c->request_len = strlen(c->text);
  c->sent_ns = c->heard_ns = now;
  c->ends_ns = now + (int64_t)(seconds * (double)SECOND);
  note(slot->what == STREAM ? STREAM_STARTED : WS_OPENED, now, now, 0, 0);
  connect_and_write(c);
}

static void done(struct conn *c, enum type type, int64_t now) {
  note(type, now, c->sent_ns, c->color, 0);
  c->slot->conn = NULL;
  c->slot->not_before_ns = now;
  c->slot = NULL;
  finish(c, now);
}

static void send_frame(struct conn *c, int opcode, const char *payload, size_t length) {
  static const uint8_t mask[4] = {0x37, 0xfa, 0x21, 0x3d};
  uint8_t frame[6 + 125] = {(uint8_t)(0x80 | opcode), (uint8_t)(0x80 | length), mask[0], mask[1], mask[2], mask[3]};
  for (size_t i = 0; i < length; i++) frame[6 + i] = (uint8_t)payload[i] ^ mask[i % 4];
  ssize_t written = send(c->fd, frame, 6 + length, MSG_NOSIGNAL);
  if (written != (ssize_t)(6 + length)) lose(c, written < 0 ? kind_of(errno) : TIMEOUT);
}

static void send_text(struct conn *c, int64_t now) {
  char payload[16];
  int length = snprintf(payload, sizeof payload, "%u", c->frames++);
  c->is_echo_due = 1;
  c->heard_ns = now;
  c->next_frame_ns += (int64_t)(plan.ws_every_ms * 1e6);
  if (c->next_frame_ns < now) c->next_frame_ns = now;
  send_frame(c, 1, payload, (size_t)length);
}

static void say_close(struct conn *c, int64_t now) {
  static const char normal[2] = {0x03, (char)0xe8};
  c->has_said_close = 1;
  c->heard_ns = now;
  send_frame(c, 8, normal, 2);
}

/* What its time asks of a stream or a WebSocket. */
static void tend(struct slot *slot, int64_t now) {
  struct conn *c = slot->conn;
  if (!c) {
    if (now >= slot->not_before_ns) start(slot);
    return;
  }
  int waits = c->reading != UPGRADED || c->is_echo_due || c->has_said_close;
  if (waits && now - c->heard_ns > timeout_ns) lose(c, TIMEOUT);
  else if (c->reading != UPGRADED || waits) return;
  else if (now >= c->ends_ns) say_close(c, now);
  else if (now >= c->next_frame_ns) send_text(c, now);
}

/* 0 when it is not "COLOR:N" of the frame that was sent. */
static int is_echo(struct conn *c, const char *payload, size_t length) {
  char wanted[COLOR_MAX + 16];
  int size = snprintf(wanted, sizeof wanted, "%s:%u", colors[c->color], c->frames - 1);
  return c->is_echo_due && length == (size_t)size && !memcmp(payload, wanted, length);
}

static void take_ws_frame(struct conn *c, int opcode, const char *payload, size_t length) {
  int64_t now = now_ns();
  if (opcode == 1 && !is_echo(c, payload, length)) {
    const char *colon = memchr(payload, ':', length);
    lose(c, colon && color_of(payload, (size_t)(colon - payload)) != c->color ? MIXED : GARBLED);
  } else if (opcode == 1) {
    c->is_echo_due = 0;
    note(WS_FRAME, now, c->sent_ns, c->color, 0);
  } else if (opcode == 9) {
    send_frame(c, 10, payload, length);
  } else if (opcode == 8 && c->has_said_close) {
    done(c, WS_DONE, now);
  } else if (opcode != 10) {
    lose(c, opcode == 8 ? CLOSED : GARBLED);
  }
}

static void feed_ws(struct conn *c, const char *data, size_t length) {
  uint32_t generation = c->generation;
  if (c->head_len + length > HEAD_MAX) {
    lose(c, GARBLED);
    return;
  }
  memcpy(c->head + c->head_len, data, length);
  c->head_len += length;
  while (c->head_len >= 2) {
    size_t size = (uint8_t)c->head[1];
    if (size > 125) {  /* echoes are short, and a server does not mask */
      lose(c, GARBLED);
      return;
    }
    if (c->head_len < 2 + size) return;
    char payload[125];
    int opcode = c->head[0] & 15;
    memcpy(payload, c->head + 2, size);
    c->head_len -= 2 + size;
    memmove(c->head, c->head + 2 + size, c->head_len);
    take_ws_frame(c, opcode, payload, size);
    if (c->generation != generation || c->state == CLOSING) return;
  }
}

/* A stream's line is "COLOR N", N counting from 0. Gives the kind of failure, or -1. */
static int check_line(struct conn *c) {
  char wanted[COLOR_MAX + 16];
  c->line[c->line_len] = 0;
  snprintf(wanted, sizeof wanted, "%s %u", colors[c->color], c->lines++);
  if (!strcmp(c->line, wanted)) return -1;
  return color_of(c->line, strcspn(c->line, " ")) == c->color ? GARBLED : MIXED;
}

static int feed_lines(struct conn *c, const char *data, size_t length) {
  for (size_t i = 0; i < length; i++) {
    if (data[i] != '\n') {
      if (c->line_len == sizeof c->line - 1) return GARBLED;
      c->line[c->line_len++] = data[i];
      continue;
    }
    int kind = check_line(c);
    if (kind >= 0) return kind;
    c->line_len = 0;
  }
  return -1;
}

/* Answers */

static void complete(struct conn *c, int is_open) {
  int64_t now = now_ns();
  if (c->status >= 400) {
    lose(c, c->status < KINDS ? c->status : GARBLED);
  } else if (c->what == STREAM) {
    if (c->line_len || !c->lines) lose(c, TRUNCATED);
    else done(c, STREAM_DONE, now);
  } else {
    note(ANSWERED, now, c->sent_ns, c->color, 0);
    if (c->what == KEPT && !c->closes && is_open) {
      c->state = IDLE;
      join(c, &idle);
    } else {
      finish(c, now);
    }
  }
}

static int is_field(const char *line, size_t length, const char *name, const char **value, size_t *value_len) {
  size_t size = strlen(name);
  if (length <= size || strncasecmp(line, name, size) || line[size] != ':') return 0;
  const char *start = line + size + 1, *end = line + length;
  while (start < end && *start == ' ') start++;
  while (end > start && end[-1] == ' ') end--;
  *value = start;
  *value_len = (size_t)(end - start);
  return 1;
}

static int is_text(const char *value, size_t length, const char *text) {
  return length == strlen(text) && !strncasecmp(value, text, length);
}

/* Gives 0 when it is no head of a response. */
static int read_fields(struct conn *c, const char *line, const char *end) {
  const char *value;
  size_t size;
  int is_accepted = 0;
  int64_t length = -1;
  c->reading = UNTIL_END;
  c->is_line_empty = 1;
  while (line < end) {
    const char *stop = memmem(line, (size_t)(end - line), "\r\n", 2);
    size_t line_len = (size_t)((stop ? stop : end) - line);
    if (is_field(line, line_len, "Content-Length", &value, &size)) {
      if (!size || size > 15) return 0;
      length = 0;
      for (size_t i = 0; i < size; i++) {
        if (value[i] < '0' || value[i] > '9') return 0;
        length = 10 * length + (value[i] - '0');
      }
    } else if (is_field(line, line_len, "Transfer-Encoding", &value, &size)) {
      if (is_text(value, size, "chunked")) c->reading = CHUNK_SIZE;
    } else if (is_field(line, line_len, "Connection", &value, &size)) {
      if (is_text(value, size, "close")) c->closes = 1;
    } else if (is_field(line, line_len, "X-Color", &value, &size)) {
      c->color = color_of(value, size);
    } else if (is_field(line, line_len, "Sec-WebSocket-Accept", &value, &size)) {
      is_accepted = size == 28 && !memcmp(value, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", size);  /* RFC 6455, 1.3 */
    }
    line += line_len + 2;
  }
  if (c->status == 204 || c->status == 304) length = 0;
  if (c->reading != CHUNK_SIZE && length >= 0) c->reading = LENGTH;
  c->left = c->reading == LENGTH ? length : 0;
  if (c->what == SOCKET && c->status < 400) {
    if (c->status != 101 || !is_accepted) return 0;
    c->reading = UPGRADED;
    c->next_frame_ns = now_ns();
  }
  return 1;
}

static int read_head(struct conn *c, const char *head, size_t length) {
  const char *line = memmem(head, length, "\r\n", 2);
  if (length < 12 || strncmp(head, "HTTP/1.", 7) || head[8] != ' ') return 0;
  c->status = 0;
  for (int i = 9; i < 12; i++) {
    if (head[i] < '0' || head[i] > '9') return 0;
    c->status = 10 * c->status + (head[i] - '0');
  }
  if (c->status < 200 && c->status != 101) return 1;  /* an answer is still to come */
  c->closes = head[7] == '0';
  return read_fields(c, line ? line + 2 : head + length, head + length);
}

/* Takes bytes of the head; gives how many, or minus the kind of failure minus 1. */
static ssize_t feed_head(struct conn *c, const char *data, size_t length) {
  size_t before = c->head_len, taken = length < HEAD_MAX - before ? length : HEAD_MAX - before;
  memcpy(c->head + before, data, taken);
  size_t from = before < 3 ? 0 : before - 3;
  char *end = memmem(c->head + from, before + taken - from, "\r\n\r\n", 4);
  c->head_len = before + taken;
  if (!end) return c->head_len == HEAD_MAX ? -1 - GARBLED : (ssize_t)taken;
  size_t head_len = (size_t)(end - c->head);
  c->head_len = 0;
  return read_head(c, c->head, head_len) ? (ssize_t)(head_len + 4 - before) : -1 - GARBLED;
}

static int hex(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  digit |= 32;
  return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

/* One byte of what is around the chunks; 0 when it does not belong there. */
static int feed_chunk_frame(struct conn *c, char byte) {
  int digit = hex(byte);
  switch (c->reading) {
    case CHUNK_SIZE:
      if (digit >= 0 && c->left < 1LL << 40) c->left = 16 * c->left + digit, c->is_line_empty = 0;
      else if (digit < 0 && !c->is_line_empty && (byte == ';' || byte == '\r' || byte == ' ')) c->reading = CHUNK_EXTENSION;
      else return 0;
      return 1;
    case CHUNK_EXTENSION:
      if (byte != '\n') return 1;
      c->reading = c->left ? CHUNK_DATA : TRAILER;
      c->is_line_empty = 1;
      return 1;
    case CHUNK_END:
      if (byte != '\r' && byte != '\n') return 0;
      if (byte == '\n') c->reading = CHUNK_SIZE, c->is_line_empty = 1;
      return 1;
    default:  /* TRAILER */
      if (byte == '\n' && c->is_line_empty) c->reading = COMPLETE;
      else if (byte == '\n') c->is_line_empty = 1;
      else if (byte != '\r') c->is_line_empty = 0;
      return 1;
  }
}

/* The same for the body. */
static ssize_t feed_body(struct conn *c, const char *data, size_t length) {
  if (c->reading != LENGTH && c->reading != CHUNK_DATA && c->reading != UNTIL_END) return feed_chunk_frame(c, *data) ? 1 : -1 - GARBLED;
  size_t taken = c->reading != UNTIL_END && (int64_t)length > c->left ? (size_t)c->left : length;
  int kind = c->what == STREAM && c->status < 400 ? feed_lines(c, data, taken) : -1;
  if (kind >= 0) return -1 - kind;
  c->left -= (int64_t)taken;
  if (c->reading == CHUNK_DATA && !c->left) c->reading = CHUNK_END;
  return (ssize_t)taken;
}

static void feed(struct conn *c, const char *data, size_t length) {
  c->has_data = 1;
  while (length && c->reading != COMPLETE) {
    if (c->reading == UPGRADED) {
      feed_ws(c, data, length);
      return;
    }
    ssize_t taken = c->reading == HEAD ? feed_head(c, data, length) : feed_body(c, data, length);
    if (taken < 0) {
      lose(c, (int)(-1 - taken));
      return;
    }
    data += taken;
    length -= (size_t)taken;
    if (c->reading == LENGTH && !c->left) c->reading = COMPLETE;
  }
  if (c->reading == COMPLETE && length) lose(c, GARBLED);
  else if (c->reading == COMPLETE) complete(c, 1);
}

static void ended(struct conn *c) {
  if (c->reading == UPGRADED) {
    if (c->has_said_close) done(c, WS_DONE, now_ns());
    else lose(c, CLOSED);
  } else if (c->reading == UNTIL_END && c->what != STREAM) {
    complete(c, 0);
  } else {
    lose(c, c->has_data ? TRUNCATED : CLOSED);
  }
}

static void receive(struct conn *c) {
  static char data[65536];
  ssize_t got = recv(c->fd, data, sizeof data, 0);
  if (got < 0 && errno == EAGAIN) return;
  if (got > 0) {
    if (c->what == STREAM || c->reading != UPGRADED) c->heard_ns = now_ns();
    feed(c, data, (size_t)got);
  } else if (got < 0) {
    lose(c, kind_of(errno));
  } else {
    ended(c);
  }
}

/* After the answer only the end counts; what else comes is read and forgotten. */
static void receive_end(struct conn *c) {
  char data[4096];
  ssize_t got = recv(c->fd, data, sizeof data, 0);
  if (got == 0 || (got < 0 && errno != EAGAIN)) drop(c, 1);
}

static void happened(struct conn *c, uint32_t events) {
  uint32_t generation = c->generation;
  if (c->state == IDLE) {
    reopen(c);
  } else if (c->state == CLOSING) {
    receive_end(c);
  } else if (c->state == BUSY) {
    if (c->request_len && events & EPOLLOUT) {
      write_request(c);
      if (c->generation == generation && !c->request_len) watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLRDHUP);
    }
    if (c->generation == generation && events & ~(uint32_t)EPOLLOUT) receive(c);
  }
}

static void expire(int64_t now) {
  while (in_flight.first && now - in_flight.first->sent_ns > timeout_ns) lose(in_flight.first, TIMEOUT);
  while (closing.first && now - closing.first->heard_ns > CLOSING_NS) drop(closing.first, 0);
}

/* The report */

static void print_ms(const char *key, int64_t ns) {
  if (ns < 0) printf("\"%s\":null,", key);
  else printf("\"%s\":%.4f,", key, (double)ns / 1e6);
}

static void print_histogram(const char *key, const struct histogram *histogram) {
  if (!histogram->count) printf("\"%s\":{\"p50\":null,\"p99\":null,\"max\":null}", key);
  else
    printf("\"%s\":{\"p50\":%.4f,\"p99\":%.4f,\"max\":%.4f}", key, quantile_ns(histogram, 0.5) / 1e6,
           quantile_ns(histogram, 0.99) / 1e6, (double)histogram->max_ns / 1e6);
}

static void print_counts(const struct phase *phase) {
  const char *comma = "";
  for (int i = 0; i < TYPES; i++)
    if (type_names[i]) printf("\"%s\":%llu,", type_names[i], (unsigned long long)phase->counts[i]);
  printf("\"answered\":{");
  for (int i = 0; i < colors_count; i++) {
    if (!phase->answered[i]) continue;
    printf("%s\"%s\":%llu", comma, colors[i], (unsigned long long)phase->answered[i]);
    comma = ",";
  }
  printf("},\"lost\":{");
  comma = "";
  for (int i = 0; i < KINDS; i++) {
    if (!phase->lost[i]) continue;
    if (i < NAMED_KINDS) printf("%s\"%s\":%llu", comma, kind_names[i], (unsigned long long)phase->lost[i]);
    else printf("%s\"http_%d\":%llu", comma, i, (unsigned long long)phase->lost[i]);
    comma = ",";
  }
  printf("},\"old_after\":%llu,", (unsigned long long)phase->old_after);
  print_histogram("latency_ms", &phase->latency);
  putchar(',');
  print_histogram("late_ms", &phase->late);
}

static void print_phase(const struct phase *phase, int64_t until_ns) {
  printf("{\"name\":\"%s\",\"at_ns\":%lld,\"until_ns\":%lld,", phase->name, (long long)phase->at_ns, (long long)until_ns);
  if (phase->old < 0) printf("\"from\":null,\"to\":null,");
  else printf("\"from\":\"%s\",\"to\":\"%s\",", colors[phase->old], colors[phase->new]);
  print_ms("first_new_ms", phase->first_new_ns);
  print_ms("last_old_ms", phase->last_old_ns);
  print_ms("last_old_answered_ms", phase->last_old_answered_ns);
  print_counts(phase);
  putchar('}');
}

static void add_phase(struct phase *sum, const struct phase *phase) {
  for (int i = 0; i < TYPES; i++) sum->counts[i] += phase->counts[i];
  for (int i = 0; i < COLORS_MAX; i++) sum->answered[i] += phase->answered[i];
  for (int i = 0; i < KINDS; i++) sum->lost[i] += phase->lost[i];
  sum->old_after += phase->old_after;
  merge(&sum->latency, &phase->latency);
  merge(&sum->late, &phase->late);
}

static void print_failures(void) {
  uint64_t first = failures_count > FAILURES ? failures_count - FAILURES : 0;
  printf("\"failures\":[");
  for (uint64_t i = first; i < failures_count; i++) {
    const struct failure *failure = &failures[i % FAILURES];
    char http[16];
    snprintf(http, sizeof http, "http_%d", failure->kind);
    printf("%s{\"what\":\"%s\",\"kind\":\"%s\",\"color\":\"%s\",\"sent_ns\":%lld,\"at_ns\":%lld}", i > first ? "," : "",
           what_names[failure->what], failure->kind < NAMED_KINDS ? kind_names[failure->kind] : http, colors[failure->color],
           (long long)failure->sent_ns, (long long)failure->at_ns);
  }
  printf("],");
}

static double cpu_s(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static void report(void) {
  int64_t now = now_ns();
  struct phase *sum = allocate(1, sizeof *sum);
  count_until(now);
  printf("{\"phases\":[");
  for (int i = 0; i < phases_count; i++) {
    if (i) putchar(',');
    print_phase(phases[i], i + 1 < phases_count ? phases[i + 1]->at_ns : now);
    add_phase(sum, phases[i]);
  }
  printf("],\"totals\":{");
  print_counts(sum);
  printf("},");
  print_failures();
  printf("\"in_flight\":%d,\"duration_s\":%.3f,\"cpu_s\":%.3f}\n", in_flight.count, (double)(now - started_ns) / 1e9, cpu_s());
  fflush(stdout);
  free(sum);
}

/* Commands */

static void answer_phase(const char *name, int old, int new, int64_t at_ns) {
  const char *error = begin_phase(name, old, new, at_ns);
  if (error) printf("{\"error\":\"%s\"}\n", error);
  else printf("{\"at_ns\":%lld}\n", (long long)at_ns);
}

static void obey(char *line) {
  int64_t now = now_ns();
  char *words[4] = {NULL}, *save = NULL;
  for (int i = 0; i < 4 && (words[i] = strtok_r(i ? NULL : line, " ", &save)); i++) {}
  const char *command = words[0] ? words[0] : "";
  if (!strcmp(command, "now")) {
    printf("{\"at_ns\":%lld}\n", (long long)now);
  } else if (!strcmp(command, "switch") && words[2]) {
    int old = color_of(words[1], strlen(words[1])), new = color_of(words[2], strlen(words[2]));
    answer_phase("switch", old, new, words[3] ? atoll(words[3]) : now);
  } else if (!strcmp(command, "phase") && words[1]) {
    answer_phase(words[1], -1, -1, words[2] ? atoll(words[2]) : now);
  } else if (!strcmp(command, "report")) {
    report();
  } else if (!strcmp(command, "stop")) {
    is_sending = 0;
  } else {
    printf("{\"error\":\"no such command\"}\n");
  }
  fflush(stdout);
}

/* Answers what was written to stdin; 0 when nobody will write any more. */
static int read_commands(void) {
  static char text[4096];
  static size_t length;
  ssize_t got = read(0, text + length, sizeof text - 1 - length);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 1;
  if (got <= 0) return 0;
  length += (size_t)got;
  char *line = text, *end;
  while ((end = memchr(line, '\n', length - (size_t)(line - text)))) {
    *end = 0;
    obey(line);
    line = end + 1;
  }
  length -= (size_t)(line - text);
  memmove(text, line, length);
  return length < sizeof text - 1;
}

/* The program */

/* Streams and WebSockets are cut off; requests get their answer. */
static void stop_slots(void) {
  for (int i = 0; i < slots_count; i++) {
    if (slots[i].conn) drop(slots[i].conn, 0);
    slots[i].conn = NULL;
  }
}

static int64_t until_next_ns(int64_t now) {
  double next = (double)(now + MS);
  for (int i = 0; i < 2 && is_sending; i++)
    if (!pacers[i].is_blocked && pacers[i].next_ns < next) next = pacers[i].next_ns;
  return next > (double)now ? (int64_t)(next - (double)now) : 0;
}

/* Sends, and hears what came; 0 when nobody will write to stdin any more. */
static int turn(void) {
  static struct epoll_event events[EVENTS];
  static int64_t tended_ns;
  for (int i = 0; i < 2 && is_sending; i++) pace(&pacers[i]);
  int64_t now = now_ns();
  if (now - tended_ns > MS / 2) {
    tended_ns = now;
    for (int i = 0; i < slots_count && is_sending; i++) tend(&slots[i], now);
    expire(now);
    count_until(now - LOOK_BACK);
    now = now_ns();
  }
  int64_t wait_ns = until_next_ns(now);
  struct timespec wait = {wait_ns / SECOND, wait_ns % SECOND};
  int count = epoll_pwait2(epoll, events, EVENTS, &wait, NULL);
  if (count < 0 && errno != EINTR) fail("epoll_pwait2");
  for (int i = 0; i < count; i++) {
    if (events[i].data.u64 == UINT64_MAX) {
      if (!read_commands()) return 0;
      continue;
    }
    struct conn *c = &conns[(uint32_t)events[i].data.u64];
    if (c->generation == (uint32_t)(events[i].data.u64 >> 32)) happened(c, events[i].events);
  }
  return 1;
}

static void run(void) {
  while (is_sending && now_ns() - started_ns < (int64_t)(plan.duration_s * (double)SECOND))
    if (!turn()) return;
  is_sending = 0;
  stop_slots();
  while (in_flight.count)
    if (!turn()) return;
  report();
}

static void set_pace(void) {
  double rates[2] = {plan.rate * (1 - plan.new_share), plan.rate * plan.new_share};
  for (int i = 0; i < 2; i++) {
    pacers[i].what = i ? FRESH : KEPT;
    pacers[i].interval_ns = rates[i] > 0 ? (double)SECOND / rates[i] : 1e30;
    pacers[i].next_ns = (double)started_ns + pacers[i].interval_ns * (i ? 0.5 : 1);  /* not both at the same time */
  }
}

static void set_slots(void) {
  slots_count = plan.streams + plan.websockets;
  slots = allocate((size_t)slots_count, sizeof *slots);
  for (int i = 0; i < slots_count; i++) {
    int is_stream = i < plan.streams, of = is_stream ? plan.streams : plan.websockets, at = is_stream ? i : i - plan.streams;
    slots[i].what = is_stream ? STREAM : SOCKET;
    slots[i].first_share = (at + 1.0) / of;  /* so that they do not all end at once */
  }
}

static void set_target(void) {
  char host[64];
  const char *colon = strrchr(plan.target, ':');
  snprintf(host, sizeof host, "%.*s", colon ? (int)(colon - plan.target) : 0, plan.target);
  target.sin_family = AF_INET;
  errno = EINVAL;
  if (!colon || inet_pton(AF_INET, host, &target.sin_addr) != 1) fail("--target takes ADDRESS:PORT");
  target.sin_port = htons((uint16_t)atoi(colon + 1));
  if (!plan.host) plan.host = plan.target;
  static const char request[] = "GET %.200s HTTP/1.1\r\nHost: %.64s\r\nConnection: %s\r\n\r\n";
  snprintf(kept_request, sizeof kept_request, request, plan.path, plan.host, "keep-alive");
  snprintf(fresh_request, sizeof fresh_request, request, plan.path, plan.host, "close");
}

static void set_limits(void) {
  struct rlimit files;
  if (getrlimit(RLIMIT_NOFILE, &files)) fail("getrlimit");
  files.rlim_cur = files.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &files)) fail("setrlimit");
  conns_max = files.rlim_cur > CONNS_MAX + SPARE_FILES ? CONNS_MAX : (int)files.rlim_cur - SPARE_FILES;
  conns = allocate((size_t)conns_max, sizeof *conns);
  phases = allocate(PHASES_MAX, sizeof *phases);
  prctl(PR_SET_TIMERSLACK, 1UL);  /* else every wait is up to 50 us longer */
}

static int usage(const char *what) {
  fprintf(stderr, "load: %s\nusage: load --target ADDRESS:PORT [--host NAME] [--path PATH] [--rate N] [--kept N] [--new-share 0..1]\n"
          "            [--streams N] [--stream-seconds S] [--websockets N] [--ws-every-ms MS] [--timeout-ms MS] [--duration S]\n", what);
  return 2;
}

static int set_option(const char *option, const char *value) {
  double number = atof(value);
  if (!strcmp(option, "--target")) plan.target = value;
  else if (!strcmp(option, "--host")) plan.host = value;
  else if (!strcmp(option, "--path")) plan.path = value;
  else if (!strcmp(option, "--rate")) plan.rate = number;
  else if (!strcmp(option, "--kept")) plan.kept = (int)number;
  else if (!strcmp(option, "--new-share")) plan.new_share = number;
  else if (!strcmp(option, "--streams")) plan.streams = (int)number;
  else if (!strcmp(option, "--stream-seconds")) plan.stream_s = number;
  else if (!strcmp(option, "--websockets")) plan.websockets = (int)number;
  else if (!strcmp(option, "--ws-every-ms")) plan.ws_every_ms = number;
  else if (!strcmp(option, "--timeout-ms")) plan.timeout_ms = number;
  else if (!strcmp(option, "--duration")) plan.duration_s = number;
  else return 0;
  return number >= 0;
}

int main(int argc, char **argv) {
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = UINT64_MAX};
  for (int i = 1; i < argc; i += 2)
    if (i + 1 == argc || !set_option(argv[i], argv[i + 1])) return usage(argv[i]);
  if (!plan.target) return usage("--target is missing");
  if (plan.new_share > 1) return usage("--new-share is a share from 0 to 1");
  set_target();
  set_limits();
  set_slots();
  timeout_ns = (int64_t)(plan.timeout_ms * 1e6);
  if ((epoll = epoll_create1(EPOLL_CLOEXEC)) < 0) fail("epoll_create1");
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event) && errno != EPERM) fail("stdin");  /* EPERM: a file, which says nothing */
  started_ns = now_ns();
  set_pace();
  begin_phase("start", -1, -1, started_ns);
  run();
  return 0;
}
