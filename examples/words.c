/* Count the words and the bytes of a release that the agent lends, judge it, and follow its swaps.
 *
 *     cc words.c $(pkg-config --cflags --libs airweights) -o words
 *     ./words SOCKET FAMILY
 */
#include <airweights.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

static int load(const char *socket_path, const char *family) {
    struct airweights_bundle bundle;
    if (airweights_open(socket_path, family, &bundle)) {
        fprintf(stderr, "words: %s\n", bundle.error);
        airweights_close(&bundle);
        return 1;
    }
    const struct airweights_file *labels = airweights_find(&bundle, "labels");
    const struct airweights_file *model = airweights_find(&bundle, "model");
    const char *text = labels ? airweights_map(labels) : NULL;
    const unsigned char *weights = model ? airweights_map(model) : NULL;
    unsigned words = 0, sum = 0;
    for (uint64_t i = 0; text && i < labels->size; i++) words += text[i] == '\n';
    for (uint64_t i = 0; weights && i < model->size; i++) sum += weights[i];
    int is_healthy = words > 0 && weights;
    printf("%s: %u words, sum %u\n", bundle.release, words, sum);
    int counted = airweights_send_verdict(&bundle, is_healthy, is_healthy ? NULL : "no words");
    printf("%s\n", counted < 0 ? bundle.error : counted ? "judged" : "not counted");
    fflush(stdout);
    if (text) munmap((void *)text, labels->size);
    if (weights) munmap((void *)weights, model->size);
    airweights_close(&bundle);
    return 0;
}

int main(int argc, char **argv) {
    struct airweights_bundle watch;
    if (argc != 3) return 2;
    int failed = airweights_watch(argv[1], argv[2], &watch);
    while (!failed && (!watch.generation || !load(argv[1], argv[2]))) failed = airweights_wait(&watch);
    if (failed) fprintf(stderr, "words: %s\n", watch.error);
    airweights_close(&watch);
    return 1;
}
