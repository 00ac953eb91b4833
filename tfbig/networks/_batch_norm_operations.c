/* The functions of _batch_norm.h as operations of TensorFlow's, on processors, of float32 and bfloat16.

    TfbigMoments(x) -> mean, variance
    TfbigNormalise(x, R * residual, mean, variance, scale, offset) -> result
    TfbigNormaliseGradient(S * upstream, x, R * result, mean, variance, scale, offset)
        -> of_x, of_scale, of_offset, R * of_residual

R is 0 or 1, S is 1 or 2. Loaded by compiled_batch_norm.py. This is TensorFlow's interface for C, which unlike that for
C++ binds to no version of a compiler; what is used of it is declared here (tensorflow/c/ops.h, kernels.h, tf_tensor.h
and tf_status.h of 2.21), since TensorFlow need not be there where tfbig is built.
*/
#include "_batch_norm.h"
#include "_batch_norm_numbers.h"

#include <stddef.h>
#include <stdlib.h>

typedef struct TF_Status TF_Status;
typedef struct TF_Tensor TF_Tensor;
typedef struct TF_OpDefinitionBuilder TF_OpDefinitionBuilder;
typedef struct TF_ShapeInferenceContext TF_ShapeInferenceContext;
typedef struct TF_ShapeHandle TF_ShapeHandle;
typedef struct TF_KernelBuilder TF_KernelBuilder;
typedef struct TF_OpKernelConstruction TF_OpKernelConstruction;
typedef struct TF_OpKernelContext TF_OpKernelContext;
typedef int TF_DataType;
typedef int TF_Code;
enum { TF_FLOAT = 1, TF_BFLOAT16 = 14 };
enum { TF_OK = 0, TF_INVALID_ARGUMENT = 3, TF_RESOURCE_EXHAUSTED = 8 };

TF_Status *TF_NewStatus(void);
void TF_DeleteStatus(TF_Status *);
void TF_SetStatus(TF_Status *, TF_Code, const char *message);
TF_Code TF_GetCode(const TF_Status *);

int TF_NumDims(const TF_Tensor *);
int64_t TF_Dim(const TF_Tensor *, int axis);
int64_t TF_TensorElementCount(const TF_Tensor *);
void *TF_TensorData(const TF_Tensor *);
void TF_DeleteTensor(TF_Tensor *);

TF_OpDefinitionBuilder *TF_NewOpDefinitionBuilder(const char *name);
void TF_OpDefinitionBuilderAddAttr(TF_OpDefinitionBuilder *, const char *spec);
void TF_OpDefinitionBuilderAddInput(TF_OpDefinitionBuilder *, const char *spec);
void TF_OpDefinitionBuilderAddOutput(TF_OpDefinitionBuilder *, const char *spec);
void TF_OpDefinitionBuilderSetShapeInferenceFunction(
    TF_OpDefinitionBuilder *, void (*infer)(TF_ShapeInferenceContext *, TF_Status *));
void TF_RegisterOpDefinition(TF_OpDefinitionBuilder *, TF_Status *);

TF_ShapeHandle *TF_NewShapeHandle(void);
void TF_DeleteShapeHandle(TF_ShapeHandle *);
void TF_ShapeInferenceContextGetInput(TF_ShapeInferenceContext *, int, TF_ShapeHandle *, TF_Status *);
void TF_ShapeInferenceContextSetOutput(TF_ShapeInferenceContext *, int, TF_ShapeHandle *, TF_Status *);
void TF_ShapeInferenceContextSubshape(
    TF_ShapeInferenceContext *, TF_ShapeHandle *, int64_t start, int64_t end, TF_ShapeHandle *, TF_Status *);

TF_KernelBuilder *TF_NewKernelBuilder(
    const char *operation, const char *device, void *(*create)(TF_OpKernelConstruction *),
    void (*compute)(void *, TF_OpKernelContext *), void (*destroy)(void *));
void TF_KernelBuilder_TypeConstraint(TF_KernelBuilder *, const char *attribute, TF_DataType, TF_Status *);
void TF_RegisterKernelBuilder(const char *name, TF_KernelBuilder *, TF_Status *);
void TF_OpKernelConstruction_GetAttrType(TF_OpKernelConstruction *, const char *, TF_DataType *, TF_Status *);
void TF_OpKernelConstruction_GetAttrInt32(TF_OpKernelConstruction *, const char *, int32_t *, TF_Status *);
void TF_OpKernelConstruction_GetAttrFloat(TF_OpKernelConstruction *, const char *, float *, TF_Status *);
void TF_OpKernelConstruction_Failure(TF_OpKernelConstruction *, TF_Status *);

void TF_GetInput(TF_OpKernelContext *, int, TF_Tensor **, TF_Status *);
TF_Tensor *TF_ForwardInputOrAllocateOutput(
    TF_OpKernelContext *, const int *candidates, int num_candidates, int output, const int64_t *shape, int rank,
    int *forwarded, TF_Status *);
void TF_OpKernelContext_Failure(TF_OpKernelContext *, TF_Status *);

#define MOST_AXES 8
#define NUM_OF_CHANNELS 4 /* mean, variance, scale and offset, the last inputs */
#define MOST_INPUTS (MOST_UPSTREAMS + 2 + NUM_OF_CHANNELS)

/* ---- what an operation is made with ---- */

typedef struct {
    Norm norm; /* its sizes are those of a call */
    int32_t num_upstreams, num_residuals;
} Attributes;

static float rounded(float value) { return float_of((uint32_t)bfloat16_of(value) << 16); }

static void *create(TF_OpKernelConstruction *construction, bool normalises, bool differentiates) {
    TF_Status *status = TF_NewStatus();
    Attributes made = {.num_upstreams = differentiates ? 0 : 1};
    TF_DataType type = TF_FLOAT;
    int32_t num_threads = 1;
    TF_OpKernelConstruction_GetAttrType(construction, "T", &type, status);
    TF_OpKernelConstruction_GetAttrInt32(construction, "num_threads", &num_threads, status);
    if (normalises) {
        TF_OpKernelConstruction_GetAttrInt32(construction, "R", &made.num_residuals, status);
        TF_OpKernelConstruction_GetAttrFloat(construction, "epsilon", &made.norm.epsilon, status);
        TF_OpKernelConstruction_GetAttrFloat(construction, "low", &made.norm.low, status);
        TF_OpKernelConstruction_GetAttrFloat(construction, "high", &made.norm.high, status);
    }
    if (differentiates) TF_OpKernelConstruction_GetAttrInt32(construction, "S", &made.num_upstreams, status);
    made.norm.is_half = type == TF_BFLOAT16;
    if (made.norm.is_half) {
        /* As results are rounded: one that was cut would else lie below its bound, and let the gradient through. */
        made.norm.low = rounded(made.norm.low);
        made.norm.high = rounded(made.norm.high);
    }
    made.norm.num_threads = num_threads;
    const bool fits = made.num_upstreams >= 1 && made.num_upstreams <= MOST_UPSTREAMS && made.num_residuals <= 1;
    Attributes *kept = fits ? malloc(sizeof *kept) : NULL;
    if (kept) {
        *kept = made;
    } else {
        TF_SetStatus(
            status, fits ? TF_RESOURCE_EXHAUSTED : TF_INVALID_ARGUMENT,
            fits ? "no memory for a batch normalisation" : "R must be 0 or 1, and S 1 or 2");
        TF_OpKernelConstruction_Failure(construction, status);
    }
    TF_DeleteStatus(status);
    return kept;
}

static void *create_moments(TF_OpKernelConstruction *construction) { return create(construction, false, false); }
static void *create_normalise(TF_OpKernelConstruction *construction) { return create(construction, true, false); }
static void *create_gradient(TF_OpKernelConstruction *construction) { return create(construction, true, true); }

/* ---- one call ---- */

/* Inputs are looked at, not held: TensorFlow lets a result lie only where nothing else holds an input. */
typedef struct {
    TF_OpKernelContext *context;
    TF_Status *status;
    Norm norm;
    void *inputs[MOST_INPUTS];
    int64_t shape[MOST_AXES]; /* of the images */
    int rank;
} Call;

static bool fail(Call *call, TF_Code code, const char *message) {
    TF_SetStatus(call->status, code, message);
    return false;
}

static bool take_images(Call *call, const TF_Tensor *images) {
    call->rank = TF_NumDims(images);
    if (call->rank < 2 || call->rank > MOST_AXES)
        return fail(call, TF_INVALID_ARGUMENT, "images must have 2 to 8 axes, the last of channels");
    for (int axis = 0; axis < call->rank; axis++) call->shape[axis] = TF_Dim(images, axis);
    call->norm.num_channels = call->shape[call->rank - 1];
    if (call->norm.num_channels < 1) return fail(call, TF_INVALID_ARGUMENT, "images must have a channel");
    call->norm.num_rows = TF_TensorElementCount(images) / call->norm.num_channels;
    return true;
}

static bool is_like_images(const Call *call, const TF_Tensor *input) {
    bool is_like = TF_NumDims(input) == call->rank;
    for (int axis = 0; is_like && axis < call->rank; axis++) is_like = TF_Dim(input, axis) == call->shape[axis];
    return is_like;
}

/* Takes `num_images` inputs of one shape, and after them `num_channels` of one number a channel. */
static bool take_inputs(Call *call, int num_images, int num_channels) {
    for (int i = 0; i < num_images + num_channels; i++) {
        TF_Tensor *input = NULL;
        TF_GetInput(call->context, i, &input, call->status);
        if (TF_GetCode(call->status) != TF_OK) return false;
        call->inputs[i] = TF_TensorData(input);
        const bool is_taken = i > 0 || take_images(call, input);
        const bool fits = i < num_images ? is_like_images(call, input)
                                         : TF_TensorElementCount(input) == call->norm.num_channels;
        TF_DeleteTensor(input);
        if (!is_taken) return false;
        if (!fits)
            return fail(call, TF_INVALID_ARGUMENT, "images must be of one shape, and the rest of a number a channel");
    }
    return true;
}

/* Memory of an output: that of one of the first `num_inputs` inputs if TensorFlow lets it. It may fail. */
static void *make_output(Call *call, int output, const int64_t *shape, int rank, int num_inputs) {
    int candidates[MOST_INPUTS], forwarded;
    for (int i = 0; i < num_inputs; i++) candidates[i] = i;
    TF_Tensor *made = TF_ForwardInputOrAllocateOutput(
        call->context, candidates, num_inputs, output, shape, rank, &forwarded, call->status);
    if (TF_GetCode(call->status) != TF_OK) return NULL;
    void *data = TF_TensorData(made);
    TF_DeleteTensor(made);
    return data;
}

static void *make_images(Call *call, int output, int num_inputs) {
    return make_output(call, output, call->shape, call->rank, num_inputs);
}

static float *make_channels(Call *call, int output) {
    return make_output(call, output, &call->norm.num_channels, 1, 0);
}

static Channels channels_at(const Call *call, int first) {
    void *const *inputs = call->inputs + first;
    return (Channels){inputs[0], inputs[1], inputs[2], inputs[3]};
}

static bool has_failed(const Call *call) { return TF_GetCode(call->status) != TF_OK; }

static void moments(Call *call, const Attributes *unused) {
    (void)unused;
    if (!take_inputs(call, 1, 0)) return;
    float *mean = make_channels(call, 0), *variance = has_failed(call) ? NULL : make_channels(call, 1);
    if (!has_failed(call) && !find_moments(&call->norm, call->inputs[0], mean, variance))
        fail(call, TF_RESOURCE_EXHAUSTED, "no memory for the sums of a batch normalisation");
}

static void normalised(Call *call, const Attributes *attributes) {
    const int num_images = 1 + attributes->num_residuals;
    if (!take_inputs(call, num_images, NUM_OF_CHANNELS)) return;
    const void *residual = attributes->num_residuals ? call->inputs[1] : NULL;
    void *result = make_images(call, 0, num_images);
    if (!has_failed(call) && !normalise(&call->norm, channels_at(call, num_images), call->inputs[0], residual, result))
        fail(call, TF_RESOURCE_EXHAUSTED, "no memory for the slopes of a batch normalisation");
}

static void gradient(Call *call, const Attributes *attributes) {
    const int x = attributes->num_upstreams, num_residuals = attributes->num_residuals;
    const int num_images = x + 1 + num_residuals;
    if (!take_inputs(call, num_images, NUM_OF_CHANNELS)) return;
    void *const *inputs = call->inputs;
    const void *upstreams[MOST_UPSTREAMS] = {inputs[0], x > 1 ? inputs[1] : NULL};
    void *of_x = NULL, *of_residual = NULL;
    float *of_scale = NULL, *of_offset = NULL;
    /* The first pass writes the residual's gradient, and x and the result are read after it. */
    if (num_residuals) of_residual = make_images(call, 3, x);
    if (!has_failed(call)) of_x = make_images(call, 0, num_images);
    if (!has_failed(call)) of_scale = make_channels(call, 1);
    if (!has_failed(call)) of_offset = make_channels(call, 2);
    if (!has_failed(call) &&
        !differentiate(
            &call->norm, channels_at(call, num_images), upstreams, inputs[x], num_residuals ? inputs[x + 1] : NULL,
            of_x, of_residual, of_scale, of_offset))
        fail(call, TF_RESOURCE_EXHAUSTED, "no memory for the sums of a batch normalisation's gradient");
}

static void run(const Attributes *attributes, TF_OpKernelContext *context, void (*body)(Call *, const Attributes *)) {
    Call call = {.context = context, .status = TF_NewStatus(), .norm = attributes->norm};
    body(&call, attributes);
    if (has_failed(&call)) TF_OpKernelContext_Failure(context, call.status);
    TF_DeleteStatus(call.status);
}

static void compute_moments(void *made, TF_OpKernelContext *context) { run(made, context, moments); }
static void compute_normalise(void *made, TF_OpKernelContext *context) { run(made, context, normalised); }
static void compute_gradient(void *made, TF_OpKernelContext *context) { run(made, context, gradient); }

/* ---- shapes ---- */

/* Gives outputs `first` to `last` the shape of the first input, or only its last axis. */
static void give_shape(
    TF_ShapeInferenceContext *context, bool only_channels, int first, int last, TF_Status *status) {
    TF_ShapeHandle *shape = TF_NewShapeHandle(), *channels = TF_NewShapeHandle();
    TF_ShapeInferenceContextGetInput(context, 0, shape, status);
    if (only_channels && TF_GetCode(status) == TF_OK)
        TF_ShapeInferenceContextSubshape(context, shape, -1, INT64_MAX, channels, status);
    for (int output = first; output <= last && TF_GetCode(status) == TF_OK; output++)
        TF_ShapeInferenceContextSetOutput(context, output, only_channels ? channels : shape, status);
    TF_DeleteShapeHandle(shape);
    TF_DeleteShapeHandle(channels);
}

static void shapes_of_moments(TF_ShapeInferenceContext *context, TF_Status *status) {
    give_shape(context, true, 0, 1, status);
}

static void shapes_of_normalise(TF_ShapeInferenceContext *context, TF_Status *status) {
    give_shape(context, false, 0, 0, status);
}

static void shapes_of_gradient(TF_ShapeInferenceContext *context, TF_Status *status) {
    give_shape(context, false, 0, 0, status);
    if (TF_GetCode(status) == TF_OK) give_shape(context, true, 1, 2, status);
    /* There is no way to ask whether there is a residual's. */
    TF_Status *unused = TF_NewStatus();
    give_shape(context, false, 3, 3, unused);
    TF_DeleteStatus(unused);
}

/* ---- registration ---- */

static void register_kernel(
    const char *operation, TF_DataType type, void *(*create)(TF_OpKernelConstruction *),
    void (*compute)(void *, TF_OpKernelContext *)) {
    TF_Status *status = TF_NewStatus();
    TF_KernelBuilder *kernel = TF_NewKernelBuilder(operation, "CPU", create, compute, free);
    TF_KernelBuilder_TypeConstraint(kernel, "T", type, status);
    TF_RegisterKernelBuilder(operation, kernel, status);
    TF_DeleteStatus(status);
}

static void register_operation(
    TF_OpDefinitionBuilder *operation, const char *name, void (*infer)(TF_ShapeInferenceContext *, TF_Status *),
    void *(*create)(TF_OpKernelConstruction *), void (*compute)(void *, TF_OpKernelContext *)) {
    TF_Status *status = TF_NewStatus();
    TF_OpDefinitionBuilderAddAttr(operation, "T: {float, bfloat16}");
    TF_OpDefinitionBuilderAddAttr(operation, "num_threads: int >= 1");
    TF_OpDefinitionBuilderSetShapeInferenceFunction(operation, infer);
    TF_RegisterOpDefinition(operation, status);
    TF_DeleteStatus(status);
    register_kernel(name, TF_FLOAT, create, compute);
    register_kernel(name, TF_BFLOAT16, create, compute);
}

static void add_norm(TF_OpDefinitionBuilder *operation) {
    static const char *const attributes[] = {"R: int >= 0", "epsilon: float", "low: float", "high: float"};
    static const char *const inputs[] = {"mean: float", "variance: float", "scale: float", "offset: float"};
    for (int i = 0; i < 4; i++) TF_OpDefinitionBuilderAddAttr(operation, attributes[i]);
    for (int i = 0; i < NUM_OF_CHANNELS; i++) TF_OpDefinitionBuilderAddInput(operation, inputs[i]);
}

__attribute__((constructor)) static void register_operations(void) {
    TF_OpDefinitionBuilder *operation = TF_NewOpDefinitionBuilder("TfbigMoments");
    TF_OpDefinitionBuilderAddInput(operation, "x: T");
    TF_OpDefinitionBuilderAddOutput(operation, "mean: float");
    TF_OpDefinitionBuilderAddOutput(operation, "variance: float");
    register_operation(operation, "TfbigMoments", shapes_of_moments, create_moments, compute_moments);

    operation = TF_NewOpDefinitionBuilder("TfbigNormalise");
    TF_OpDefinitionBuilderAddInput(operation, "x: T");
    TF_OpDefinitionBuilderAddInput(operation, "residual: R * T");
    add_norm(operation);
    TF_OpDefinitionBuilderAddOutput(operation, "result: T");
    register_operation(operation, "TfbigNormalise", shapes_of_normalise, create_normalise, compute_normalise);

    operation = TF_NewOpDefinitionBuilder("TfbigNormaliseGradient");
    TF_OpDefinitionBuilderAddAttr(operation, "S: int >= 1");
    TF_OpDefinitionBuilderAddInput(operation, "upstream: S * T");
    TF_OpDefinitionBuilderAddInput(operation, "x: T");
    TF_OpDefinitionBuilderAddInput(operation, "result: R * T");
    add_norm(operation);
    TF_OpDefinitionBuilderAddOutput(operation, "of_x: T");
    TF_OpDefinitionBuilderAddOutput(operation, "of_scale: float");
    TF_OpDefinitionBuilderAddOutput(operation, "of_offset: float");
    TF_OpDefinitionBuilderAddOutput(operation, "of_residual: R * T");
    register_operation(operation, "TfbigNormaliseGradient", shapes_of_gradient, create_gradient, compute_gradient);
}
