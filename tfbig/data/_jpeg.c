/* Parts of JPEG files, decoded by libjpeg and resized while their rows come, so that no whole picture is ever in memory.

TensorFlow's operations do the same (image_parts.decode_part), one picture at a time and a pass over all pixels for each
of decoding, float32, resizing, mirroring and stacking. This module is compiled where tfbig is installed if a compiler
and libjpeg-turbo's header are there, and done without where not. What it does not decode, or what libjpeg only warns
of, it leaves to TensorFlow, which decides alone what a readable file is.

A row is read, two rows are mixed into one as high as the result asks, and the pixels of that one into the result's.
The places between pixels are those of tf.image.resize: pixel i of `size` lies at (i + 0.5) * length / size - 0.5.
*/
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <jpeglib.h>

#define COLOURS 3
/* TensorFlow decodes no picture of so many, whatever part of it is wanted. */
#define TOO_MANY_NUMBERS (1 << 29)
/* The largest result: as large as a JPEG may be. */
#define LARGEST 65500
/* Rows begin one byte after a multiple of this: libjpeg writes aligned rows past the processor's caches, and reading
them back takes longer than decoding them. */
#define ALIGNMENT 64

#if defined(__x86_64__) && defined(__gnu_linux__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

/* A pixel and the first number of the next one. */
typedef float Pixel __attribute__((vector_size(16)));

/* Where a row or column of the result lies among those of the part: after `low` by a `share` of the way to the next. */
typedef struct {
    int low;
    float share;
} Place;

/* A window of a picture that is shrunk by `by`, in pixels after shrinking; `by` is 1, 2, 4 or 8, or 0 for no part. */
typedef struct {
    int32_t top, left, height, width, by, mirrored;
} Window;

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf end;
} Errors;

/* What one picture is decoded with; all of it is freed at its end, however that comes. */
typedef struct {
    struct jpeg_decompress_struct decoder;
    Errors errors;
    unsigned char *memory; /* two rows, as decoded */
    float *line;           /* one row between them, and two pixels more */
    Place *rows, *columns;
} Work;

static void end(j_common_ptr decoder) { longjmp(((Errors *)decoder->err)->end, 1); }

static void end_at_a_warning(j_common_ptr decoder, int level) {
    if (level < 0) end(decoder);
}

static void find_places(Place *places, int size, int length) {
    const float scale = (float)length / (float)size;
    for (int i = 0; i < size; i++) {
        const float at = ((float)i + 0.5f) * scale - 0.5f, below = floorf(at);
        const int low = (int)below;
        const int is_inside = low >= 0 && low + 1 < length;
        places[i].low = low < 0 ? 0 : low < length ? low : length - 1;
        places[i].share = is_inside ? at - below : 0;
    }
}

/* A line of numbers in [0, 1], a share of the way from one row of bytes to another. */
FOR_EACH_PROCESSOR
static void mix_rows(float *line, const unsigned char *above, const unsigned char *below, float share, int length) {
    const float of_below = share / 255, of_above = 1 / 255.0f - of_below;
    for (int i = 0; i < length; i++) line[i] = above[i] * of_above + below[i] * of_below;
}

/* A row of the result, of a line of pixels and one that is not used. */
FOR_EACH_PROCESSOR
static void mix_columns(float *result, const float *line, const Place *columns, int size) {
    Pixel left, right;
    for (int i = 0; i < size; i++, result += COLOURS) {
        memcpy(&left, line + COLOURS * columns[i].low, sizeof left);
        memcpy(&right, line + COLOURS * (columns[i].low + 1), sizeof right);
        left += (right - left) * columns[i].share;
        /* The number too much is overwritten by the next pixel; after the last one lies another row, or nothing. */
        if (i + 1 < size) memcpy(result, &left, sizeof left);
    }
    memcpy(result - COLOURS, &left, COLOURS * sizeof(float));
}

static void mirror(Place *columns, int size) {
    for (int i = 0, j = size - 1; i < j; i++, j--) {
        const Place other = columns[i];
        columns[i] = columns[j];
        columns[j] = other;
    }
}

/* Whether the picture is one that TensorFlow decodes, and the window inside of it; libjpeg's own checks of that overflow in its older versions. */
static int begins(Work *work, const unsigned char *encoded, size_t length, const Window *window) {
    struct jpeg_decompress_struct *decoder = &work->decoder;
    jpeg_mem_src(decoder, encoded, (unsigned long)length);
    jpeg_read_header(decoder, TRUE);
    decoder->out_color_space = JCS_RGB; /* of grey and colour; libjpeg ends where there are more components */
    decoder->dct_method = JDCT_ISLOW;
    decoder->scale_num = 1;
    decoder->scale_denom = (unsigned int)window->by;
    jpeg_calc_output_dimensions(decoder);
    const int64_t height = decoder->output_height, width = decoder->output_width;
    if (height * width * COLOURS >= TOO_MANY_NUMBERS) return 0;
    jpeg_start_decompress(decoder);
    return window->top >= 0 && window->left >= 0 && window->height > 0 && window->width > 0 &&
           (int64_t)window->top + window->height <= height && (int64_t)window->left + window->width <= width;
}

/* Fills `result`, size x size x 3, and returns 1; or returns 0 and has written anything there. */
static int decoded(Work *work, const unsigned char *encoded, size_t length, const Window *window, int size,
                   float *result) {
    struct jpeg_decompress_struct *decoder = &work->decoder;
    if (!begins(work, encoded, length, window)) return 0;
    /* Widened to where a block begins and ends. */
    JDIMENSION from = (JDIMENSION)window->left, width = (JDIMENSION)window->width;
    jpeg_crop_scanline(decoder, &from, &width);
    const size_t skipped = ((size_t)window->left - from) * COLOURS;
    const size_t stride = ((size_t)width * COLOURS + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    work->memory = malloc(2 * stride + ALIGNMENT + 1);
    work->line = calloc(((size_t)window->width + 2) * COLOURS, sizeof(float));
    work->rows = malloc(2 * (size_t)size * sizeof(Place));
    if (!work->memory || !work->line || !work->rows) return 0;
    work->columns = work->rows + size;
    find_places(work->rows, size, window->height);
    find_places(work->columns, size, window->width);
    if (window->mirrored) mirror(work->columns, size);
    unsigned char *const first = work->memory + ALIGNMENT + 1 - (uintptr_t)work->memory % ALIGNMENT;
    unsigned char *const kept[2] = {first, first + stride};
    if (jpeg_skip_scanlines(decoder, (JDIMENSION)window->top) != (JDIMENSION)window->top) return 0;
    for (int y = 0, next = 0; y < size; y++) {
        const Place row = work->rows[y];
        const int high = row.low + (row.share > 0);
        for (; next <= high; next++) {
            JSAMPROW to = kept[next % 2];
            if (jpeg_read_scanlines(decoder, &to, 1) != 1) return 0;
        }
        mix_rows(work->line, kept[row.low % 2] + skipped, kept[high % 2] + skipped, row.share,
                 window->width * COLOURS);
        mix_columns(result + (size_t)y * size * COLOURS, work->line, work->columns, size);
    }
    return 1;
}

static int decoded_unless_libjpeg_ends(Work *work, const unsigned char *encoded, size_t length, const Window *window,
                                      int size, float *result) {
    if (setjmp(work->errors.end)) return 0;
    jpeg_create_decompress(&work->decoder);
    return decoded(work, encoded, length, window, size, result);
}

static int attempt(const unsigned char *encoded, size_t length, const Window *window, int size, float *result) {
    if (window->by == 0) return 0;
    Work work = {0};
    work.decoder.err = jpeg_std_error(&work.errors.base);
    work.errors.base.error_exit = end;
    work.errors.base.emit_message = end_at_a_warning;
    const int is_done = decoded_unless_libjpeg_ends(&work, encoded, length, window, size, result);
    jpeg_destroy_decompress(&work.decoder);
    free(work.memory);
    free(work.line);
    free(work.rows);
    return is_done;
}

/* The bytes of each object of a list, which has to outlive them. Returns -1 where one has none, with an exception. */
static int find_bytes(PyObject *list, Py_ssize_t count, char **contents, Py_ssize_t *lengths) {
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyList_GetItem(list, i); /* borrowed */
        if (!item || PyBytes_AsStringAndSize(item, &contents[i], &lengths[i]) < 0) return -1;
    }
    return 0;
}

static PyObject *decode_all(PyObject *list, const Py_buffer *windows, const Py_buffer *pixels, int size) {
    const Py_ssize_t count = PyList_Size(list);
    const Py_ssize_t each = (Py_ssize_t)size * size * COLOURS;
    if (size < 1 || size > LARGEST || windows->len != count * (Py_ssize_t)sizeof(Window) ||
        pixels->len != count * each * (Py_ssize_t)sizeof(float)) {
        return PyErr_Format(PyExc_ValueError, "expected a window and size x size x 3 float32 for each of %zd pictures",
                            count);
    }
    PyObject *done = PyBytes_FromStringAndSize(NULL, count);
    char **contents = calloc((size_t)count + 1, sizeof(char *));
    Py_ssize_t *lengths = calloc((size_t)count + 1, sizeof(Py_ssize_t));
    if (done && contents && lengths && find_bytes(list, count, contents, lengths) == 0) {
        char *flags = PyBytes_AsString(done);
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < count; i++) {
            flags[i] = (char)attempt((const unsigned char *)contents[i], (size_t)lengths[i],
                                     (const Window *)windows->buf + i, size, (float *)pixels->buf + i * each);
        }
        Py_END_ALLOW_THREADS
    } else {
        Py_CLEAR(done);
        if (!PyErr_Occurred()) PyErr_NoMemory();
    }
    free(contents);
    free(lengths);
    return done;
}

static PyObject *decode_parts(PyObject *module, PyObject *arguments) {
    PyObject *list;
    Py_buffer windows, pixels;
    int size;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "O!y*w*i:decode_parts", &PyList_Type, &list, &windows, &pixels, &size)) return NULL;
    PyObject *done = decode_all(list, &windows, &pixels, size);
    PyBuffer_Release(&windows);
    PyBuffer_Release(&pixels);
    return done;
}

static PyMethodDef methods[] = {
    {"decode_parts", decode_parts, METH_VARARGS, "decode_parts(encoded, windows, pixels, size), see _jpeg.pyi."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT, .m_name = "tfbig.data._jpeg", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__jpeg(void) { return PyModuleDef_Init(&definition); }
