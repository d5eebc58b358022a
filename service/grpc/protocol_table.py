"""The protocols as tables: Open Inference with Triton's extensions, and health checking.

A line is a message, its fields are NAME:TYPE=NUMBER. `TYPE*` is a repeated field, `TYPE|ONEOF` one
of the alternatives of a oneof, `{TYPE}` a map from strings; types that begin with a capital are
messages and enumerations of the same package. Names and numbers are facts of the protocols:
https://github.com/kserve/open-inference-protocol, Triton's `grpc_service.proto` and
`model_config.proto`, and `grpc.health.v1`. Of the model's configuration, the table has what applies
here; clients read the rest as unset.
"""

from __future__ import annotations

INFERENCE = "inference"
HEALTH = "grpc.health.v1"

INFERENCE_MESSAGES = """
ServerLiveRequest
ServerLiveResponse live:bool=1
ServerReadyRequest
ServerReadyResponse ready:bool=1
ModelReadyRequest name:string=1 version:string=2
ModelReadyResponse ready:bool=1
ServerMetadataRequest
ServerMetadataResponse name:string=1 version:string=2 extensions:string*=3
ModelMetadataRequest name:string=1 version:string=2
ModelMetadataResponse name:string=1 versions:string*=2 platform:string=3
    inputs:ModelMetadataResponse.TensorMetadata*=4 outputs:ModelMetadataResponse.TensorMetadata*=5
ModelMetadataResponse.TensorMetadata name:string=1 datatype:string=2 shape:int64*=3

InferParameter bool_param:bool|parameter_choice=1 int64_param:int64|parameter_choice=2
    string_param:string|parameter_choice=3 double_param:double|parameter_choice=4
    uint64_param:uint64|parameter_choice=5
InferTensorContents bool_contents:bool*=1 int_contents:int32*=2 int64_contents:int64*=3
    uint_contents:uint32*=4 uint64_contents:uint64*=5 fp32_contents:float*=6
    fp64_contents:double*=7 bytes_contents:bytes*=8
ModelInferRequest model_name:string=1 model_version:string=2 id:string=3
    parameters:{InferParameter}=4 inputs:ModelInferRequest.InferInputTensor*=5
    outputs:ModelInferRequest.InferRequestedOutputTensor*=6 raw_input_contents:bytes*=7
ModelInferRequest.InferInputTensor name:string=1 datatype:string=2 shape:int64*=3
    parameters:{InferParameter}=4 contents:InferTensorContents=5
ModelInferRequest.InferRequestedOutputTensor name:string=1 parameters:{InferParameter}=2
ModelInferResponse model_name:string=1 model_version:string=2 id:string=3
    parameters:{InferParameter}=4 outputs:ModelInferResponse.InferOutputTensor*=5
    raw_output_contents:bytes*=6
ModelInferResponse.InferOutputTensor name:string=1 datatype:string=2 shape:int64*=3
    parameters:{InferParameter}=4 contents:InferTensorContents=5
ModelStreamInferResponse error_message:string=1 infer_response:ModelInferResponse=2

ModelConfigRequest name:string=1 version:string=2
ModelConfigResponse config:ModelConfig=1
ModelConfig name:string=1 platform:string=2 backend:string=17
    version_policy:ModelVersionPolicy=3 max_batch_size:int32=4 input:ModelInput*=5
    output:ModelOutput*=6 dynamic_batching:ModelDynamicBatching|scheduling_choice=11
    instance_group:ModelInstanceGroup*=7 parameters:{ModelParameter}=14
ModelInput name:string=1 data_type:DataType=2 format:ModelInput.Format=3 dims:int64*=4
    optional:bool=8
ModelOutput name:string=1 data_type:DataType=2 dims:int64*=3
ModelVersionPolicy latest:ModelVersionPolicy.Latest|policy_choice=1
ModelVersionPolicy.Latest num_versions:uint32=1
ModelInstanceGroup name:string=1 kind:ModelInstanceGroup.Kind=4 count:int32=2
ModelDynamicBatching preferred_batch_size:int32*=1 max_queue_delay_microseconds:uint64=2
    priority_levels:uint64=4 default_priority_level:uint64=5
    default_queue_policy:ModelQueuePolicy=6
ModelQueuePolicy timeout_action:ModelQueuePolicy.TimeoutAction=1
    default_timeout_microseconds:uint64=2 allow_timeout_override:bool=3 max_queue_size:uint32=4
ModelParameter string_value:string=1

ModelStatisticsRequest name:string=1 version:string=2
ModelStatisticsResponse model_stats:ModelStatistics*=1
ModelStatistics name:string=1 version:string=2 last_inference:uint64=3 inference_count:uint64=4
    execution_count:uint64=5 inference_stats:InferStatistics=6 batch_stats:InferBatchStatistics*=7
InferStatistics success:StatisticDuration=1 fail:StatisticDuration=2 queue:StatisticDuration=3
    compute_input:StatisticDuration=4 compute_infer:StatisticDuration=5
    compute_output:StatisticDuration=6 cache_hit:StatisticDuration=7 cache_miss:StatisticDuration=8
InferBatchStatistics batch_size:uint64=1 compute_input:StatisticDuration=2
    compute_infer:StatisticDuration=3 compute_output:StatisticDuration=4
StatisticDuration count:uint64=1 ns:uint64=2

RepositoryIndexRequest repository_name:string=1 ready:bool=2
RepositoryIndexResponse models:RepositoryIndexResponse.ModelIndex*=1
RepositoryIndexResponse.ModelIndex name:string=1 version:string=2 state:string=3 reason:string=4
ModelRepositoryParameter bool_param:bool|parameter_choice=1 int64_param:int64|parameter_choice=2
    string_param:string|parameter_choice=3 bytes_param:bytes|parameter_choice=4
RepositoryModelLoadRequest repository_name:string=1 model_name:string=2
    parameters:{ModelRepositoryParameter}=3
RepositoryModelLoadResponse
RepositoryModelUnloadRequest repository_name:string=1 model_name:string=2
    parameters:{ModelRepositoryParameter}=3
RepositoryModelUnloadResponse

SystemSharedMemoryStatusRequest name:string=1
SystemSharedMemoryStatusResponse
SystemSharedMemoryRegisterRequest name:string=1 key:string=2 offset:uint64=3 byte_size:uint64=4
SystemSharedMemoryRegisterResponse
SystemSharedMemoryUnregisterRequest name:string=1
SystemSharedMemoryUnregisterResponse
CudaSharedMemoryStatusRequest name:string=1
CudaSharedMemoryStatusResponse
CudaSharedMemoryRegisterRequest name:string=1 raw_handle:bytes=2 device_id:int64=3
    byte_size:uint64=4
CudaSharedMemoryRegisterResponse
CudaSharedMemoryUnregisterRequest name:string=1
CudaSharedMemoryUnregisterResponse
TraceSettingRequest model_name:string=2
TraceSettingResponse
LogSettingsRequest
LogSettingsResponse
"""
# Values by enumeration, in the order of their numbers from 0.
INFERENCE_ENUMERATIONS = """
DataType TYPE_INVALID TYPE_BOOL TYPE_UINT8 TYPE_UINT16 TYPE_UINT32 TYPE_UINT64 TYPE_INT8 TYPE_INT16
    TYPE_INT32 TYPE_INT64 TYPE_FP16 TYPE_FP32 TYPE_FP64 TYPE_STRING TYPE_BF16
ModelInput.Format FORMAT_NONE FORMAT_NHWC FORMAT_NCHW
ModelInstanceGroup.Kind KIND_AUTO KIND_GPU KIND_CPU KIND_MODEL
ModelQueuePolicy.TimeoutAction REJECT DELAY
"""
INFERENCE_SERVICE = "GRPCInferenceService"
# Its methods; the messages of each are METHODRequest and METHODResponse.
METHODS = (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
    "ModelConfig", "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad",
    "RepositoryModelUnload", "SystemSharedMemoryStatus", "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister", "CudaSharedMemoryStatus", "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister", "TraceSetting", "LogSettings",
)  # fmt: skip
# The one that streams both ways: requests of ModelInfer, and its responses or errors.
STREAM = "ModelStreamInfer"

HEALTH_MESSAGES = """
HealthCheckRequest service:string=1
HealthCheckResponse status:HealthCheckResponse.ServingStatus=1
"""
HEALTH_ENUMERATIONS = """
HealthCheckResponse.ServingStatus UNKNOWN SERVING NOT_SERVING SERVICE_UNKNOWN
"""
HEALTH_SERVICE = "Health"
