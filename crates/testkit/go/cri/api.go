package main

// Messages of the container runtime interface (k8s.io/cri-api, runtime.v1), as much of them as is asked for here: Debian packages no Go sources of it. Names and numbers are
// Kubernetes'.

// XXX_NoUnkeyedLiteral makes a struct one of protobuf's, whose fields are found by their tags. The library passes over an embedded field of this name only.
type XXX_NoUnkeyedLiteral struct{}

func (XXX_NoUnkeyedLiteral) Reset()         {}
func (XXX_NoUnkeyedLiteral) String() string { return "" }
func (XXX_NoUnkeyedLiteral) ProtoMessage()  {}

type empty struct{ XXX_NoUnkeyedLiteral }

type versionResponse struct {
	XXX_NoUnkeyedLiteral
	RuntimeName    string `protobuf:"bytes,2,opt,name=runtime_name,proto3"`
	RuntimeVersion string `protobuf:"bytes,3,opt,name=runtime_version,proto3"`
}

type condition struct {
	XXX_NoUnkeyedLiteral
	Type    string `protobuf:"bytes,1,opt,name=type,proto3"`
	Status  bool   `protobuf:"varint,2,opt,name=status,proto3"`
	Message string `protobuf:"bytes,4,opt,name=message,proto3"`
}

type runtimeStatus struct {
	XXX_NoUnkeyedLiteral
	Conditions []*condition `protobuf:"bytes,1,rep,name=conditions,proto3"`
}

type statusResponse struct {
	XXX_NoUnkeyedLiteral
	Status *runtimeStatus `protobuf:"bytes,1,opt,name=status,proto3"`
}

type imageSpec struct {
	XXX_NoUnkeyedLiteral
	Image string `protobuf:"bytes,1,opt,name=image,proto3"`
}

type imageRequest struct {
	XXX_NoUnkeyedLiteral
	Image *imageSpec `protobuf:"bytes,1,opt,name=image,proto3"`
}

type image struct {
	XXX_NoUnkeyedLiteral
	ID   string   `protobuf:"bytes,1,opt,name=id,proto3"`
	Tags []string `protobuf:"bytes,2,rep,name=repo_tags,proto3"`
	Size uint64   `protobuf:"varint,4,opt,name=size,proto3"`
}

type imageStatusResponse struct {
	XXX_NoUnkeyedLiteral
	Image *image `protobuf:"bytes,1,opt,name=image,proto3"`
}

type idMapping struct {
	XXX_NoUnkeyedLiteral
	Host      uint32 `protobuf:"varint,1,opt,name=host_id,proto3"`
	Container uint32 `protobuf:"varint,2,opt,name=container_id,proto3"`
	Length    uint32 `protobuf:"varint,3,opt,name=length,proto3"`
}

type userNamespace struct {
	XXX_NoUnkeyedLiteral
	Mode int32        `protobuf:"varint,1,opt,name=mode,proto3"`
	UIDs []*idMapping `protobuf:"bytes,2,rep,name=uids,proto3"`
	GIDs []*idMapping `protobuf:"bytes,3,rep,name=gids,proto3"`
}

// Of a namespace: the pod's is 0, the container's 1, the node's 2.
type namespaceOption struct {
	XXX_NoUnkeyedLiteral
	Network int32          `protobuf:"varint,1,opt,name=network,proto3"`
	PID     int32          `protobuf:"varint,2,opt,name=pid,proto3"`
	IPC     int32          `protobuf:"varint,3,opt,name=ipc,proto3"`
	Users   *userNamespace `protobuf:"bytes,5,opt,name=userns_options,proto3"`
}

type sandboxSecurity struct {
	XXX_NoUnkeyedLiteral
	Namespaces *namespaceOption `protobuf:"bytes,1,opt,name=namespace_options,proto3"`
}

type linuxSandbox struct {
	XXX_NoUnkeyedLiteral
	CgroupParent string           `protobuf:"bytes,1,opt,name=cgroup_parent,proto3"`
	Security     *sandboxSecurity `protobuf:"bytes,2,opt,name=security_context,proto3"`
}

type sandboxMetadata struct {
	XXX_NoUnkeyedLiteral
	Name      string `protobuf:"bytes,1,opt,name=name,proto3"`
	UID       string `protobuf:"bytes,2,opt,name=uid,proto3"`
	Namespace string `protobuf:"bytes,3,opt,name=namespace,proto3"`
}

type sandboxConfig struct {
	XXX_NoUnkeyedLiteral
	Metadata *sandboxMetadata `protobuf:"bytes,1,opt,name=metadata,proto3"`
	Hostname string           `protobuf:"bytes,2,opt,name=hostname,proto3"`
	Logs     string           `protobuf:"bytes,3,opt,name=log_directory,proto3"`
	Linux    *linuxSandbox    `protobuf:"bytes,8,opt,name=linux,proto3"`
}

type runSandboxRequest struct {
	XXX_NoUnkeyedLiteral
	Config *sandboxConfig `protobuf:"bytes,1,opt,name=config,proto3"`
}

// id is all that many requests and answers have: of a sandbox, or of a container.
type id struct {
	XXX_NoUnkeyedLiteral
	ID string `protobuf:"bytes,1,opt,name=id,proto3"`
}

type containerSecurity struct {
	XXX_NoUnkeyedLiteral
	Namespaces *namespaceOption `protobuf:"bytes,3,opt,name=namespace_options,proto3"`
	ReadOnly   bool             `protobuf:"varint,7,opt,name=readonly_rootfs,proto3"`
}

type linuxContainer struct {
	XXX_NoUnkeyedLiteral
	Security *containerSecurity `protobuf:"bytes,2,opt,name=security_context,proto3"`
}

type containerMetadata struct {
	XXX_NoUnkeyedLiteral
	Name string `protobuf:"bytes,1,opt,name=name,proto3"`
}

type containerConfig struct {
	XXX_NoUnkeyedLiteral
	Metadata *containerMetadata `protobuf:"bytes,1,opt,name=metadata,proto3"`
	Image    *imageSpec         `protobuf:"bytes,2,opt,name=image,proto3"`
	Command  []string           `protobuf:"bytes,3,rep,name=command,proto3"`
	Log      string             `protobuf:"bytes,11,opt,name=log_path,proto3"`
	Linux    *linuxContainer    `protobuf:"bytes,15,opt,name=linux,proto3"`
}

type createRequest struct {
	XXX_NoUnkeyedLiteral
	Sandbox       string           `protobuf:"bytes,1,opt,name=pod_sandbox_id,proto3"`
	Config        *containerConfig `protobuf:"bytes,2,opt,name=config,proto3"`
	SandboxConfig *sandboxConfig   `protobuf:"bytes,3,opt,name=sandbox_config,proto3"`
}

type stopRequest struct {
	XXX_NoUnkeyedLiteral
	ID      string `protobuf:"bytes,1,opt,name=container_id,proto3"`
	Timeout int64  `protobuf:"varint,2,opt,name=timeout,proto3"`
}

type execRequest struct {
	XXX_NoUnkeyedLiteral
	ID      string   `protobuf:"bytes,1,opt,name=container_id,proto3"`
	Command []string `protobuf:"bytes,2,rep,name=cmd,proto3"`
	Timeout int64    `protobuf:"varint,3,opt,name=timeout,proto3"`
}

type execResponse struct {
	XXX_NoUnkeyedLiteral
	Out  []byte `protobuf:"bytes,1,opt,name=stdout,proto3"`
	Err  []byte `protobuf:"bytes,2,opt,name=stderr,proto3"`
	Code int32  `protobuf:"varint,3,opt,name=exit_code,proto3"`
}

type number struct {
	XXX_NoUnkeyedLiteral
	Value uint64 `protobuf:"varint,1,opt,name=value,proto3"`
}

type filesystem struct {
	XXX_NoUnkeyedLiteral
	Mountpoint string `protobuf:"bytes,1,opt,name=mountpoint,proto3"`
}

type filesystemUsage struct {
	XXX_NoUnkeyedLiteral
	ID     *filesystem `protobuf:"bytes,2,opt,name=fs_id,proto3"`
	Bytes  *number     `protobuf:"bytes,3,opt,name=used_bytes,proto3"`
	Inodes *number     `protobuf:"bytes,4,opt,name=inodes_used,proto3"`
}

type imageFsResponse struct {
	XXX_NoUnkeyedLiteral
	Images []*filesystemUsage `protobuf:"bytes,1,rep,name=image_filesystems,proto3"`
}

type containerAttributes struct {
	XXX_NoUnkeyedLiteral
	ID string `protobuf:"bytes,1,opt,name=id,proto3"`
}

type containerStats struct {
	XXX_NoUnkeyedLiteral
	Attributes *containerAttributes `protobuf:"bytes,1,opt,name=attributes,proto3"`
	Layer      *filesystemUsage     `protobuf:"bytes,4,opt,name=writable_layer,proto3"`
}

type containerStatsResponse struct {
	XXX_NoUnkeyedLiteral
	Stats *containerStats `protobuf:"bytes,1,opt,name=stats,proto3"`
}

type listStatsResponse struct {
	XXX_NoUnkeyedLiteral
	Stats []*containerStats `protobuf:"bytes,1,rep,name=stats,proto3"`
}
