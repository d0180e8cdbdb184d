/* Borrow verified files of a release from the airweights agent. docs/apps/c.md describes the library.
 *
 * - A borrowed file is a read-only descriptor of sealed memory: map it; nothing is copied.
 * - Functions return 0, or -1 with a message in `error`. The library prints nothing and starts no threads.
 * - Use a bundle, or a watch, from one thread at a time.
 */
#ifndef AIRWEIGHTS_H
#define AIRWEIGHTS_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define AIRWEIGHTS_SOCKET "/run/device-agent/apps.sock"

struct airweights_file {
    char path[208];     /* path in the bundle, such as "labels/words.txt" */
    char role[24];      /* such as "model" or "labels" */
    char sha256[65];    /* digest of the content, hexadecimal */
    uint64_t size;      /* bytes */
    int fd;             /* read-only descriptor; belongs to the bundle */
};

struct airweights_bundle {
    char family[72], release[72], variant[72], bundle[65];
    uint64_t generation; /* grows with each swap; 0 while nothing serves */
    struct airweights_file *files;
    size_t count;
    int connection;      /* the agent counts the memory until it is closed */
    char error[256];     /* of the last function that failed */
};

/* Borrow all files of the serving release. `socket_path` NULL is AIRWEIGHTS_SOCKET. Close the bundle, also after -1. */
int airweights_open(const char *socket_path, const char *family, struct airweights_bundle *bundle);
/* Return the file with a path, or the first one with a role; NULL if there is none. */
const struct airweights_file *airweights_find(const struct airweights_bundle *bundle, const char *name);
/* Map a file read-only; NULL if it is empty or cannot be mapped. munmap(address, file->size) frees it. */
const void *airweights_map(const struct airweights_file *file);
/* Send a health verdict on a borrowed release; `why` may be NULL. Returns 1 if it counts, 0 if not, -1 on an error. */
int airweights_send_verdict(struct airweights_bundle *bundle, int is_healthy, const char *why);
/* Watch a family: fields of the serving release, without files. `watch->connection` can be polled for input. */
int airweights_watch(const char *socket_path, const char *family, struct airweights_bundle *watch);
/* Wait for the next change and update the fields. */
int airweights_wait(struct airweights_bundle *watch);
/* Close the descriptors and the connection; mappings stay valid. */
void airweights_close(struct airweights_bundle *bundle);

#ifdef __cplusplus
}
#endif
#endif
