/* A stand-in for libcudart: the calls of measure/board/cuda.py, on ordinary memory. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

int cudaMalloc(void **address, size_t size) { *address = malloc(size); return *address == 0; }
int cudaFree(void *address) { free(address); return 0; }
int cudaMemcpy(void *to, const void *from, size_t size, int kind)
{
    memcpy(to, from, size);
    return kind != 1 && kind != 2;
}
int cudaStreamCreate(void **stream) { *stream = malloc(1); return 0; }
int cudaStreamSynchronize(void *stream) { return stream == 0; }
int cudaEventCreate(void **event) { *event = malloc(sizeof(struct timespec)); return 0; }
int cudaEventRecord(void *event, void *stream)
{
    (void)stream;
    return clock_gettime(CLOCK_MONOTONIC, event);
}
int cudaEventElapsedTime(float *ms, void *begin, void *end)
{
    struct timespec *a = begin, *b = end;
    *ms = 1e3f * (b->tv_sec - a->tv_sec) + 1e-6f * (b->tv_nsec - a->tv_nsec);
    return 0;
}
