/* Client of the agent's socket for applications; the protocol is in docs/apps/protocol.md. POSIX and C99 only. */
#define _GNU_SOURCE
#include "airweights.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MAX_FDS 250
#define MAX_MESSAGE (16u << 20)

static int fail(struct airweights_bundle *b, const char *what, const char *detail) {
    snprintf(b->error, sizeof b->error, "%.72s: %.180s", what, detail);
    return -1;
}

/* JSON of the agent: skip one value, and return what follows it; NULL if the text ends. */
static const char *skip_value(const char *p) {
    int depth = 0;
    do {
        if (*p == '"') {
            for (p++; *p && *p != '"'; p++) if (*p == '\\' && p[1]) p++;
            if (!*p) return NULL;
            p++;
        } else if (*p == '{' || *p == '[') { depth++; p++; }
        else if (*p == '}' || *p == ']') { if (!depth) return p; depth--; p++; }
        else if (!*p) return NULL;
        else if (!depth && *p == ',') return p;
        else p++;
    } while (depth || (*p && *p != ',' && *p != '}' && *p != ']' && *p != ':'));
    return p;
}

/* Return the value of a member of the object at `p`; NULL if it has none. */
static const char *member(const char *p, const char *name) {
    size_t length = strlen(name);
    if (!p || *p++ != '{') return NULL;
    while (*p == '"') {
        const char *key = p + 1, *after = skip_value(p);
        if (!after || *after != ':') return NULL;
        if ((size_t)(after - key) == length + 1 && !memcmp(key, name, length)) return after + 1;
        if (!(p = skip_value(after + 1)) || *p != ',') return NULL;
        p++;
    }
    return NULL;
}

static void copy_text(char *out, size_t size, const char *value) {
    size_t n = 0;
    if (value && *value == '"')
        for (value++; *value && *value != '"' && n + 1 < size; out[n++] = *value++) if (*value == '\\' && value[1]) value++;
    out[n] = 0;
}

static uint64_t number(const char *value) { return value ? strtoull(value, NULL, 10) : 0; }

static int receive_all(int s, char *data, size_t size, int *fds, size_t *count) {
    while (size) {
        union { struct cmsghdr head; char space[CMSG_SPACE(MAX_FDS * sizeof(int))]; } control;
        struct iovec part = {data, size};
        struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
        ssize_t got = recvmsg(s, &m, MSG_CMSG_CLOEXEC);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return -1;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
            size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
            for (size_t i = 0; i < n; i++) {
                int fd;
                memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
                if (*count < MAX_FDS) fds[(*count)++] = fd; else close(fd);
            }
        }
        if (m.msg_flags & MSG_CTRUNC) return -1;
        data += got, size -= (size_t)got;
    }
    return 0;
}

/* Receive one message; the caller frees the text. Descriptors go to `fds`. */
static char *receive(struct airweights_bundle *b, int *fds, size_t *count) {
    uint32_t head;
    char *text = NULL;
    *count = 0;
    if (!receive_all(b->connection, (char *)&head, sizeof head, fds, count) && ntohl(head) <= MAX_MESSAGE
        && (text = malloc((size_t)ntohl(head) + 1))) {
        text[ntohl(head)] = 0;
        if (!receive_all(b->connection, text, ntohl(head), fds, count)) return text;
    }
    free(text);
    while (*count) close(fds[--*count]);
    fail(b, "the agent closed the connection", errno ? strerror(errno) : "no reason");
    return NULL;
}

static int send_request(struct airweights_bundle *b, const char *text) {
    char data[1024];
    size_t size = strlen(text), sent = 0;
    uint32_t head = htonl((uint32_t)size);
    memcpy(data, &head, 4), memcpy(data + 4, text, size);
    while (sent < size + 4) {
        ssize_t n = send(b->connection, data + sent, size + 4 - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return fail(b, "cannot send to the agent", strerror(errno));
        sent += (size_t)n;
    }
    return 0;
}

static int start(const char *path, const char *command, const char *family, struct airweights_bundle *b) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char text[256];
    memset(b, 0, sizeof *b), b->connection = -1;
    path = path ? path : AIRWEIGHTS_SOCKET;
    if (strlen(path) >= sizeof address.sun_path) return fail(b, path, "the path is too long for a socket");
    if (strlen(family) > 64 || strpbrk(family, "\"\\")) return fail(b, family, "not the name of a family");
    strcpy(address.sun_path, path);
    b->connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (b->connection < 0 || connect(b->connection, (struct sockaddr *)&address, sizeof address))
        return fail(b, path, strerror(errno));
    snprintf(text, sizeof text, "{\"version\":1,\"command\":\"%s\",\"family\":\"%s\"}", command, family);
    return send_request(b, text);
}

static void read_release(struct airweights_bundle *b, const char *ok) {
    copy_text(b->family, sizeof b->family, member(ok, "family"));
    copy_text(b->release, sizeof b->release, member(ok, "release"));
    copy_text(b->variant, sizeof b->variant, member(ok, "variant"));
    copy_text(b->bundle, sizeof b->bundle, member(ok, "bundle"));
    b->generation = number(member(ok, "generation"));
}

static const char *reply_of(struct airweights_bundle *b, const char *text) {
    const char *ok = member(text, "ok"), *error = member(text, "error");
    char reason[64], message[180];
    if (ok) return ok;
    copy_text(reason, sizeof reason, member(error, "reason"));
    copy_text(message, sizeof message, member(error, "message"));
    fail(b, *reason ? reason : "malformed reply", message);
    return NULL;
}

int airweights_open(const char *socket_path, const char *family, struct airweights_bundle *b) {
    if (start(socket_path, "open", family, b)) return -1;
    for (int is_last = 0; !is_last;) {
        int fds[MAX_FDS];
        size_t count, used = 0;
        char *text = receive(b, fds, &count);
        const char *ok = text ? reply_of(b, text) : NULL, *row = member(ok, "files");
        struct airweights_file *grown = ok ? realloc(b->files, (b->count + count + 1) * sizeof *grown) : NULL;
        if (grown) b->files = grown;
        if (grown && row)
            for (row++; *row == '{' && used < count; used++) {
                struct airweights_file *file = &b->files[b->count++];
                copy_text(file->path, sizeof file->path, member(row, "path"));
                copy_text(file->role, sizeof file->role, member(row, "role"));
                copy_text(file->sha256, sizeof file->sha256, member(row, "sha256"));
                file->size = number(member(row, "size"));
                file->fd = fds[used];
                if (!(row = skip_value(row))) break;
                row += *row == ',';
            }
        is_last = !grown || !row || *member(ok, "is_last") != 'f';
        if (grown) read_release(b, ok);
        while (used < count) close(fds[--count]);
        free(text);
        if (!grown || !row) return *b->error ? -1 : fail(b, "malformed reply", family);
    }
    return 0;
}

const struct airweights_file *airweights_find(const struct airweights_bundle *b, const char *name) {
    for (size_t i = 0; i < b->count; i++) if (!strcmp(b->files[i].path, name)) return &b->files[i];
    for (size_t i = 0; i < b->count; i++) if (!strcmp(b->files[i].role, name)) return &b->files[i];
    return NULL;
}

const void *airweights_map(const struct airweights_file *file) {
    void *found = file->size ? mmap(NULL, file->size, PROT_READ, MAP_SHARED, file->fd, 0) : MAP_FAILED;
    return found == MAP_FAILED ? NULL : found;
}

int airweights_send_verdict(struct airweights_bundle *b, int is_healthy, const char *why) {
    char text[768], clean[201];
    int fds[MAX_FDS], out = -1;
    size_t n = 0, count;
    for (; why && why[n] && n + 1 < sizeof clean; n++)
        clean[n] = why[n] < ' ' || why[n] == '"' || why[n] == '\\' || why[n] & 0x80 ? '?' : why[n];
    clean[n] = 0;
    snprintf(text, sizeof text,
             "{\"version\":1,\"command\":\"verdict\",\"family\":\"%s\",\"bundle\":\"%s\",\"is_healthy\":%s,\"why\":\"%s\"}",
             b->family, b->bundle, is_healthy ? "true" : "false", clean);
    char *reply = send_request(b, text) ? NULL : receive(b, fds, &count);
    const char *ok = reply ? reply_of(b, reply) : NULL, *counted = member(ok, "counted");
    if (counted) out = *counted == 't';
    free(reply);
    return out;
}

int airweights_watch(const char *socket_path, const char *family, struct airweights_bundle *watch) {
    return start(socket_path, "watch", family, watch) ? -1 : airweights_wait(watch);
}

int airweights_wait(struct airweights_bundle *watch) {
    int fds[MAX_FDS];
    size_t count;
    char *text = receive(watch, fds, &count);
    const char *event = text && member(text, "event") ? text : text ? reply_of(watch, text) : NULL;
    if (event) read_release(watch, event);
    while (text && count) close(fds[--count]);
    free(text);
    return event ? 0 : -1;
}

void airweights_close(struct airweights_bundle *b) {
    for (size_t i = 0; i < b->count; i++) close(b->files[i].fd);
    free(b->files);
    if (b->connection >= 0) close(b->connection);
    b->files = NULL, b->count = 0, b->connection = -1;
}
